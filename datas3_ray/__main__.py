"""``python -m datas3_ray``: the command ``datas3``."""

from datas3_ray.cli import main

if __name__ == "__main__":
    main()
