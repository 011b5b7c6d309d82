"""An owner's record of what left, and what is counted against it. No torch, no federation."""
