"""The files of the console and of the pages of the API, as browsers get them."""
