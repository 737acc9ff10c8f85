"""The paper's experiments, on its data and on anybody's own: recipes as data, a runner, tables and figures."""
