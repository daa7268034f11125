"""Writes a C program of so many files, and its Makefile, to the working folder."""

import sys

FILE = """#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
struct node_{n} {{ struct node_{n} *left, *right; double key; char name[32]; }};
{functions}
double part_{n}(double x) {{ double sum = 0; {calls} return sum; }}
"""
FUNCTION = """
static struct node_{n} *insert_{n}_{f}(struct node_{n} *tree, double key) {{
    if (!tree) {{
        tree = calloc(1, sizeof *tree);
        tree->key = key;
        snprintf(tree->name, sizeof tree->name, "node %d %g", {f}, key);
    }} else if (key < tree->key) tree->left = insert_{n}_{f}(tree->left, key);
    else tree->right = insert_{n}_{f}(tree->right, key);
    return tree;
}}
static double walk_{n}_{f}(const struct node_{n} *tree) {{
    return tree ? walk_{n}_{f}(tree->left) + sin(tree->key) * strlen(tree->name) + walk_{n}_{f}(tree->right) : 0;
}}
static double work_{n}_{f}(double x) {{
    struct node_{n} *tree = NULL;
    for (int i = 0; i < 20; i++) tree = insert_{n}_{f}(tree, fmod(x * (i + {f}), 17.0));
    return walk_{n}_{f}(tree);
}}
"""

files = range(int(sys.argv[1]))
for n in files:
    functions = "".join(FUNCTION.format(n=n, f=f) for f in range(12))
    calls = " ".join(f"sum += work_{n}_{f}(x);" for f in range(12))
    with open(f"part{n}.c", "w") as out:
        out.write(FILE.format(n=n, functions=functions, calls=calls))
with open("main.c", "w") as out:
    out.write("#include <stdio.h>\n" + "".join(f"double part_{n}(double);\n" for n in files))
    out.write("int main(void) { double sum = 0; " + " ".join(f"sum += part_{n}(1.5);" for n in files))
    out.write(' printf("%g\\n", sum); }\n')
with open("Makefile", "w") as out:
    objects = " ".join(f"part{n}.o" for n in files)
    out.write(f"CFLAGS = -O2\nprogram: main.o {objects}\n\t$(CC) -o $@ $^ -lm\n")
