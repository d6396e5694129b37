"""The options of the verbs: reads them from the command line and from recipes, and prints their help."""
