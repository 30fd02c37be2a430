"""What follows from the curves of a study; `findings` puts it together."""
