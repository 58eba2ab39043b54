"""Layouts for people: tables, pictures, single addresses. Apart from the catalogue, which every pack loads whole."""
