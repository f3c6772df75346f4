"""A small GPT-2 with every mechanism of chapter `mixing_gates` behind a named switch, and its ablation ladder."""
