"""The page of a study: views that hand texts and tables to the templates beside them."""
