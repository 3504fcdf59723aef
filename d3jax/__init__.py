"""d3jax: multi-domain click-through-rate prediction in JAX, with D3 as a plug-in."""
