"""Training rows of several tasks: prompt templates, what fills their slots, and the rows themselves."""
