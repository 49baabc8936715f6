"""Trajectories by the thousand: runs that survive the night, one store on disk, and the formats that people load."""
