"""Single pictures that networks which enlarge learn from: photographs, frames of films, dead leaves."""
