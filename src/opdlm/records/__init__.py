"""What a run writes down: frozen records with their JSON forms, and the folder that holds them."""
