"""Prompts → responses, with their hidden states reduced inside the decode loop."""
