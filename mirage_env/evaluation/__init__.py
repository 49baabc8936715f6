"""How far generated worlds are from true ones: metrics, walks beside their baselines, and the codec alone."""
