"""Target `"lowbit"`: weights of 2 and 4 bits that the runtime multiplies as they are.

| module | |
|---|---|
| `products.py` | which operators of a file are products with a matrix of weights |
| `patches.py` | the operators that lay the inputs of a convolution out as rows |
| `codes.py` | the integer codes of a matrix, and what they are multiples of |
| `costs.py` | about how long each form takes, by measurement |
| `tables.py` | which shared tables of packed weights pay |
| `reporting.py` | what the report says of a choice |
| `making.py` | chooses a form for each product, and makes the file |
| `checks.py` | compares the file with Keras, and with its int8 twin |
"""
