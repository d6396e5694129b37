"""Reads the options of the verbs from the command line and from recipes, and prints the help of the verbs."""
