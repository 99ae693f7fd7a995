"""Every fault in every phase, on real guests between real agents."""
