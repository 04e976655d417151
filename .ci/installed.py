"In an environment with the package: that it lies there, not in the checkout; then the code of the first guide. `installed.py ENV CHECKOUT`"
import json,re,sys
from importlib.metadata import metadata,version
from pathlib import Path
import matplotlib
matplotlib.use('Agg')

env,root = (Path(o).resolve() for o in sys.argv[1:])
import fastai_lottery
assert Path(fastai_lottery.__file__).resolve().is_relative_to(env), f'{fastai_lottery.__file__} is not in {env}'
assert version('fastai_lottery')==fastai_lottery.__version__
assert set(metadata('fastai_lottery').get_all('Provides-Extra'))>={'deploy','ray','dask','text','loggers'}

guide = json.loads((root/'nbs/tutorials/01_first_ticket.ipynb').read_text(encoding='utf-8'))
codes = [''.join(c['source']) for c in guide['cells'] if c['cell_type']=='code']
ns = {}
for s in codes:
    if not re.search(r'^#\|\s*eval:\s*false', s, re.M): exec(s, ns)
print(f'fastai_lottery {fastai_lottery.__version__}: {len(codes)} cells of the first guide ran')
