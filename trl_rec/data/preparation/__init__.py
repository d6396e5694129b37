"""Makes a dataset folder from an interaction log: checks the options, filters, splits and writes."""
