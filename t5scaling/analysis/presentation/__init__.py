"""What was concluded as people read it: figures, tables on the terminal, sentences, pages."""
