"""How vectors become codes and what consumes codes: numpy, torch and faiss, no Beam."""
