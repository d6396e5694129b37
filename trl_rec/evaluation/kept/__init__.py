"""What an evaluation keeps in its folder: results, values per user, ranked items, and the environment."""
