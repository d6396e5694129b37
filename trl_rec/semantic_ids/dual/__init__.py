"""Makes Align3GR's semantic IDs for items and users. Two networks, the item tower and the user tower, are trained
together on texts and interactions, and compute the IDs."""
