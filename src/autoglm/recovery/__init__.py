"""What comes back after a death: folders that are whole or absent, and what was done since."""
