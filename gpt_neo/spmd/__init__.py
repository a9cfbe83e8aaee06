"""The program of one core of a mesh: exported, compiled ahead of time, and run on any devices that XLA knows."""
