"""The protocol between two agents, sans-IO: frames, messages, and who may say what when."""
