"""Pure functions on poses, intrinsics, depth maps and points."""
