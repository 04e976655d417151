"The repo itself: its settings agree, and what is generated is up to date"
import ast,base64,builtins,importlib,io,json,os,re,shutil,subprocess,sys
from configparser import ConfigParser
from pathlib import Path
import pytest
from PIL import Image
from test_house import floors,lib,notebooks,root
try: import tomllib
except ImportError: import tomli as tomllib

toml = tomllib.loads((root/'pyproject.toml').read_text())
project,nbdev = toml['project'],toml['tool']['nbdev']
nbs = [root/p for p in notebooks]
def version(): return re.search(r'^__version__ = "(.+)"', (root/lib/'__init__.py').read_text(), re.M)[1]
def run(*args, cwd=root, **env):
    outer = {k:v for k,v in os.environ.items() if k!='IN_TEST'}
    r = subprocess.run(args, cwd=cwd, text=True, capture_output=True, env={**outer, **env})
    return r.returncode, r.stdout+r.stderr

# --- settings

def asked(reqs): return ' '.join(re.sub(r'\s','',o) for o in reqs)
def as_ini():
    "What settings.ini should say, by pyproject.toml"
    p = project
    stage = next(o for o in p['classifiers'] if o.startswith('Development Status'))
    res = dict(lib_name=p['name'], repo=p['name'], version=version(), description=p['description'])
    res.update(author=p['authors'][0]['name'], license={'Apache-2.0':'apache2'}[p['license']])
    res.update(min_python=p['requires-python'].removeprefix('>='), status=re.search(r'\d', stage)[0])
    res.update(keywords=' '.join(f'"{o}"' if ' ' in o else o for o in p['keywords']))
    res.update(requirements=asked(p['dependencies']), dev_requirements=asked(p['optional-dependencies']['dev']))
    res.update(console_scripts=' '.join(k+'='+v for k,v in p['scripts'].items()))
    res.update(exec_profile=str(nbdev['exec_profile']))
    for o in 'title','lib_path','nbs_path','doc_path': res[o] = nbdev[o]
    for o in 'strip_libs','allowed_out_metadata_keys': res[o] = ' '.join(nbdev[o])
    return res

def test_settings_ini_agrees_with_pyproject():
    "`settings.ini` holds the settings of pyproject.toml, for those who look for them there"
    from nbdev.config import get_config
    cfg,want = ConfigParser(),as_ini()
    cfg.read(root/'settings.ini')
    ini = dict(cfg['DEFAULT'])
    assert {k:ini.get(k) for k in want} == want
    # All others are nbdev's defaults, or say what pyproject.toml has no place for
    rest = {k:v for k,v in ini.items() if k not in want and k not in ('copyright','language','audience')}
    conf = get_config(root)
    assert {k:str(conf.d[k]) for k in rest} == rest

def test_pyproject_promises():
    assert project['dynamic']==['version']
    assert toml['tool']['setuptools']['dynamic']['version']=={'attr':f'{lib}.__version__'}
    deps,extras = project['dependencies'],project['optional-dependencies']
    assert {'torch>=2.4','fastai>=2.8'} <= set(deps) and project['requires-python']=='>=3.10'
    assert not [o for o in deps if '==' in o or '<' in o], 'a dependency that people install is pinned'
    assert set(extras)=={'dev','docs','bench','text','loggers','deploy','ray','dask','executors'} and 'fasterai==0.4.1' in extras['bench']
    assert all('==' in o.split(';')[0] for o in extras['docs']), 'the site is built with exact versions'
    pys = {o.rsplit(' ',1)[1] for o in project['classifiers'] if 'Python :: 3.' in o}
    ci = (root/'.github/workflows/ci.yml').read_text()
    assert pys==set(re.findall(r"'(3\.\d+)'", ci)), 'a version of Python is told of that no check runs, or the other way round'

def test_command_is_there():
    "`lottery` leads to a function"
    mod,fn = project['scripts']['lottery'].split(':')
    assert callable(getattr(importlib.import_module(mod), fn))

def test_changelog_has_this_version():
    s = (root/'CHANGELOG.md').read_text()
    assert re.findall(r'^## (\S+)', s, re.M)[0] == version()
    assert re.search(rf'^## {re.escape(version())}\n\n(- .+\n)+', s, re.M), 'no line about this version'

def test_licence():
    s = (root/'LICENSE').read_text()
    assert 'Apache License' in s and 'Version 2.0' in s and 'END OF TERMS AND CONDITIONS' in s

# --- what is generated is in step with its source

def test_modules_in_step_with_notebooks(tmp_path):
    "Each module is exactly what the notebooks export, and there is no other"
    for o in 'pyproject.toml','nbs': (shutil.copytree if (root/o).is_dir() else shutil.copy)(root/o, tmp_path/o)
    (tmp_path/lib).mkdir()
    shutil.copy(root/lib/'__init__.py', tmp_path/lib)
    code = 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()'
    rc,log = run(sys.executable, '-c', code, cwd=tmp_path)
    assert rc==0, log
    def files(d): return {p.name:p.read_text() for p in (d/lib).glob('*.py')}
    want,have = files(tmp_path),files(root)
    assert len(want)>2, log
    differ = sorted(k for k in want.keys()|have.keys() if want.get(k)!=have.get(k))
    assert not differ, f'not what the notebooks export: {differ}; change the notebook and run `make export`'

@pytest.mark.parametrize('p', nbs, ids=lambda p: str(p.relative_to(root/'nbs')))
def test_notebook_in_step_with_nbdev_clean(p, tmp_path):
    from nbdev.clean import _nbdev_clean
    from fastcore.nbio import write_nb
    nb = json.loads(p.read_text(encoding='utf-8'))
    _nbdev_clean(nb, p.parent)
    (out := tmp_path/'nb.ipynb').write_text('')
    write_nb(nb, out)
    assert p.read_text(encoding='utf-8')==out.read_text(encoding='utf-8'), 'run `nbdev-clean`'

# nbdev-test runs one notebook after another in a process: what one silences stays silent for the next,
# whose `test_warns` then fails
@pytest.mark.parametrize('p', nbs, ids=lambda p: str(p.relative_to(root/'nbs')))
def test_notebook_names_the_warnings_it_silences(p):
    cells = [''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code']
    calls = [m for c in cells for m in re.findall(r'^warnings\.(?:filterwarnings|simplefilter)\((.*)', c, re.M)]
    every = [o for o in calls if ',' not in o.split('#')[0]]
    assert not every, 'it silences every warning of the notebooks that follow; name the message or the category'

def test_readme_in_step_with_index():
    pytest.importorskip('nbconvert', reason='README.md is made with nbconvert, of the `docs` extra')
    rc,log = run(sys.executable, 'docs/readme.py', '--check')
    assert rc==0, log

def test_presets_json_in_step_with_presets():
    rc,log = run(sys.executable, '-W', 'ignore', 'docs/listing.py', '--check')
    assert rc==0, log

# --- what a person imports

def star(mod):
    ns = {}
    exec(f'from {mod} import *', ns)
    return {k:v for k,v in ns.items() if k!='__builtins__'}

apart = {'rows','saved','sharded'}    # they import DTensor, which takes half a second, and need a newer torch

def test_all_gives_everything():
    have = star(f'{lib}.all')
    for m in sorted(floors.keys()-{'all','cli'}-apart):
        mod = importlib.import_module(f'{lib}.{m}')
        missing = [n for n in mod.__all__ if have.get(n) is not getattr(mod,n)]
        assert not missing, f'`from {lib}.all import *` does not give these of {m}'

@pytest.mark.parametrize('mod', ['fastai.vision.all','fastai.tabular.all','fastai.text.all','fastai.collab'])
def test_all_hides_no_fastai_name(mod):
    ours,theirs = star(f'{lib}.all'),star(mod)
    assert theirs and ours
    assert not sorted(k for k in ours.keys()&theirs.keys() if ours[k] is not theirs[k])

# --- nothing of one person's machine

# Spelled in pieces, so that this file passes too
words = [r'(?<![\w.])/(?:home|Users)'+r'/\w', r'(?<![\w.])/root'+'/', r'(?<![\w.])/work'+'/', r'\.\./shared'+'/',
    r'\bshared'+r'/(?:hooks|data|prototypes|[A-Z]+\.md)', 'py'+r'pi\.org', 'python'+r'hosted\.org', 'npm'+r'js\.(?:org|com)',
    r'conda\.'+r'anaconda\.org', r'download\.py'+r'torch\.org', '--(?:extra-)?index'+'-url']

def tracked():
    if not (root/'.git').exists(): pytest.skip('not a git checkout: there is no list of tracked files')
    rc,log = run('git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard')
    assert rc==0, log
    return [p for o in log.split('\0') if o and (p := root/o).is_file()]

def test_no_trace_of_a_machine():
    bad,n = [],0
    for p in tracked():
        b = p.read_bytes()
        if b'\0' in b: continue
        n += 1
        s = b.decode('utf-8')
        bad += [f'{p.relative_to(root)}: {m[0]}' for w in words for m in re.finditer(w,s)]
    assert n>10
    assert not bad

made = re.compile(r"""(^|/)(\.venv|__pycache__|_build|\.ipynb_checkpoints|[^/]*\.egg-info|lottery_runs)/
    |\.(pth|pkl|pyc)$""", re.X)
def test_nothing_generated_is_tracked():
    names = [p.relative_to(root).as_posix() for p in tracked()]
    assert not [o for o in names if made.search(o)]
    tensors = [o for o in names if o.endswith('.safetensors')]
    assert not [o for o in tensors if not o.startswith('tests/')], 'tickets that tests read stand in tests/; no others'

@pytest.mark.parametrize('f', sorted(root.glob('nbs/**/*.ipynb')), ids=lambda f: f.stem)
def test_the_first_cell_is_title_and_lead_alone(f):
    "The site takes these two from it, and what stands below them would be lost"
    first = ''.join(json.loads(f.read_text(encoding='utf-8'))['cells'][0]['source'])
    assert len([p for p in first.split('\n\n') if p.strip()])<=2

unseen = re.compile(r'^#\|\s*(hide|eval:\s*false|echo:\s*false|include:\s*false)', re.M)
def shown(f):
    "The code that a reader of a page sees, cell by cell"
    for c in json.loads(f.read_text(encoding='utf-8'))['cells']:
        s = ''.join(c['source'])
        if c['cell_type']=='code' and not unseen.search(s): yield ast.parse(s)

def brought(o):
    "The names that an import brings"
    if not (isinstance(o, ast.ImportFrom) and o.names[0].name=='*'): return {(a.asname or a.name).split('.')[0] for a in o.names}
    m = importlib.import_module(o.module)
    return set(getattr(m, '__all__', None) or [k for k in vars(m) if k[0]!='_'])

def made_by(tree):
    "The names that a piece of code defines, wherever"
    for o in ast.walk(tree):
        if isinstance(o, (ast.Import,ast.ImportFrom)): yield from brought(o)
        elif isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store): yield o.id
        elif isinstance(o, ast.arg): yield o.arg
        elif isinstance(o, (ast.FunctionDef,ast.ClassDef,ast.ExceptHandler)) and o.name: yield o.name

def lacking(trees):
    "Names that code uses and neither it nor a cell before it defines"
    have = {*dir(builtins)}
    for t in trees:
        have.update(made_by(t))
        yield from (o.id for o in ast.walk(t) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Load) and o.id not in have)

@pytest.mark.parametrize('f', sorted([*root.glob('nbs/tutorials/*.ipynb'), *root.glob('nbs/papers/*.ipynb')]), ids=lambda f: f.stem)
def test_what_a_page_shows_stands_alone(f):
    "Who copies the code of a page lacks nothing that only a hidden cell brings"
    used_later = ast.parse('def f(): return later')
    assert list(lacking([ast.parse('from math import *\nx = pi'), ast.parse('x+y')]))==['y'] and list(lacking([used_later]))==['later']
    assert not sorted({*lacking(shown(f))})

@pytest.mark.parametrize('size,width,wide', [((1000,400),None,True), ((833,577),None,True), ((1777,1231),888,True),
    ((600,400),None,False), ((1298,722),649,False)])
def test_a_picture_that_a_phone_would_shrink_too_far_scrolls(size, width, wide, monkeypatch):
    "Panels side by side, and a board of several rows; what counts is the width at which it is shown"
    monkeypatch.syspath_prepend(str(root/'docs'))
    from markup import ground
    b = io.BytesIO()
    Image.new('RGB', size, 'white').save(b, format='png')
    o = dict(data={'image/png':base64.b64encode(b.getvalue()).decode()}, metadata={'image/png':{'width':width}} if width else {})
    assert ground(o)=='fig-paper'+' fig-wide'*wide

def test_columns_of_words_are_marked_and_printed_columns_keep_their_lines(monkeypatch):
    "Words begin at the left, figures end at the right; what is printed in columns is not broken on a phone"
    monkeypatch.syspath_prepend(str(root/'docs'))
    from markup import in_columns,words
    h = ('<table><thead><tr><th></th><th>arm</th><th>left</th></tr></thead><tbody><tr><th>0</th><td>ticket</td><td>.5</td></tr>'
         '<tr><th>1</th><td>a random mask of as many weights</td><td>-</td></tr></tbody></table>')
    assert words(h).count('class="words long"')==3 and '<td>.5</td>' in words(h) and words('<p>no table</p>')=='<p>no table</p>'
    assert in_columns([dict(text='a   b\n1   2\n')]) and not in_columns([dict(text='a message\nof words\n')])

def test_figures_stay_with_their_unit(monkeypatch):
    "In prose over line ends, in tables beside each other; code stays as it is, and hyphens before figures become minus signs"
    monkeypatch.syspath_prepend(str(root/'docs'))
    from markup import table,units
    said = units('of 95\n% and .61\n± .21 `5 % ± 1`\n```sh\nat 5 % ± 1\n```\nat 5 %')
    assert said=='of 95\xa0% and .61\xa0±\xa0.21 `5 % ± 1`\n```sh\nat 5 % ± 1\n```\nat 5\xa0%'
    one = '<table class="dataframe"><thead><tr><th>a</th></tr></thead><tbody><tr><td>{}</td></tr></tbody></table>'
    both = table(one.format('-.1 pp (-0.2 to 3)')+'<p>-1 and 2 %</p>'+one.format('8×8 digits'))
    assert '<td>−.1\xa0pp (−0.2\xa0to\xa03)</td>' in both and '<p>-1 and 2 %</p>' in both
    assert both.count('class="words"')==2, 'each table by itself: the second is of words, its head as well'
