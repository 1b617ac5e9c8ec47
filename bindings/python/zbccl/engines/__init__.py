"""What the plug-ins for inference engines share: seams, take-overs, and a group's communicator.

Nothing here imports an engine. `peers` and `slot` need PyTorch, the rest does not.
"""
