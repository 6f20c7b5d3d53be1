module example.org/peterrec-example

go 1.19
