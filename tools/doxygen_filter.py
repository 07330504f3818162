#!/usr/bin/env python3
"""Doxygen's view of a header: the comments of the project (//) as documentation (///), without what needs none."""
import re
import sys

# Destructors, copies and moves say all in their signature.
PLAIN = re.compile(r"(~\w+\(\)|= delete|= default|(\w+)\(\2&& \w+\) noexcept|(\w+)\(\3&&\) noexcept|operator=\(\w+&&.*)"
                   r"( override)?( noexcept)?;$")
CODE = re.compile(r"^(?P<code>\s*[^/\s}].*[;,{}])\s+// (?P<text>.*)$")


def documentation(text):
    return re.sub(r"<(?=[\w|])", r"\\<", text)


def main():
    for line in open(sys.argv[1], encoding="utf-8"):
        line = line.rstrip("\n")
        if match := re.match(r"^(\s*)// ?(.*)$", line):
            print(f"{match[1]}/// {documentation(match[2])}")
        elif match := CODE.match(line):
            print(f"{match['code']}  ///< {documentation(match['text'])}")
        elif match := re.match(r"^TORCH_MODULE\((\w+)\);", line):
            print(f"/// Holds a {match[1]}Impl, as LibTorch's modules are held: a shared pointer whose constructor is the "
                  f"module's.\nclass {match[1]} : public torch::nn::ModuleHolder<{match[1]}Impl> {{}};")
        elif re.match(r"^\s*void visit\(core::FieldVisitor& v\);$", line):
            print(f"{line}  ///< Names each field, for files and messages: core/options_io.h.")
        elif PLAIN.search(line):
            print()
        else:
            print(line)


if __name__ == "__main__":
    main()
