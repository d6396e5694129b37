"""Makes Align3GR's semantic IDs for items and users, with two towers trained together on texts and interactions."""
