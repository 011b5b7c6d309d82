"""An owner's record of sent replies, and what policies count from it. No torch, no federation."""
