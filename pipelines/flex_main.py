"""The file the Flex Template launcher runs; everything is in `pipelines.flex_template`.

No class or DoFn may live in a `__main__` module: workers could not import it.
"""

from pipelines.flex_template import main

if __name__ == "__main__":
    main()
