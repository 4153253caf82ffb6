"""Where money and bookings meet, over both databases and a processor at the port."""
