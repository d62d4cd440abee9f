"""midigpt: train a music GPT on a folder of MIDI files and compose with it."""
