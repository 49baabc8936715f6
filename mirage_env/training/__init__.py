"""How the embedded weights came to be, and how a user trains their own."""
