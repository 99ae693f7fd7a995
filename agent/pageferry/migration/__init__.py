"""The choreography of one migration, on both sides, and its journal."""
