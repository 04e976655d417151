"What answers without loading PyTorch and fastai: help, lists, wrong names; and what it answers from"
import json,os,shutil,subprocess,sys
from pathlib import Path
import pytest
from fastai_lottery.catalogue import Listed,catalogue,listed
from fastai_lottery.experiments import table_of
from fastai_lottery.presets import preset,presets

root = Path(__file__).resolve().parent.parent

def python(code, *args, path=root, **kwargs):
    "A new Python that finds the package in `path`"
    env = dict(os.environ, PYTHONPATH=str(path))
    return subprocess.run([sys.executable,'-c',code,*args], capture_output=True, text=True, encoding='utf-8', env=env, **kwargs)

# --- what is loaded

heavy = 'torch torchvision fastai fastprogress numpy pandas scipy sklearn matplotlib safetensors'.split()
says_loaded = f"""import sys
from fastai_lottery.cli import main
try: rc = main(sys.argv[1:])
except SystemExit as e: rc = e.code or 0
print('loaded', rc, *[o for o in {heavy} if o in sys.modules])"""

@pytest.mark.parametrize('args,rc', [('',0), ('--help',0), ('list',0), ('list sign',0), ('list conv-4',0),
    ('list nothing',1), ('run --help',0), ('report --help',0), ('bogus',2),
    ('run',2), ('run digit',1), ('run digits --round-up',2), ('run digits --rounds two',2), ('report',2)])
def test_an_answer_loads_nothing(args, rc, tmp_path):
    done = python(says_loaded, *args.split(), cwd=tmp_path)
    assert done.stdout.splitlines()[-1]==f'loaded {rc}', done.stdout+done.stderr
    assert not list(tmp_path.iterdir())

def test_a_command_that_plays_does_load(tmp_path):
    "Or the test above would see nothing"
    done = python(says_loaded, 'report', str(tmp_path/'missing'))
    said = done.stdout.splitlines()[-1].split()
    assert said[:2]==['loaded','1'] and {'torch','fastai','pandas','matplotlib'}<={*said}, done.stdout+done.stderr

# --- what stands in the file

def test_listed_is_what_the_presets_say():
    rows = table_of(presets.values())
    assert [*catalogue()]==[*presets]
    for p,o in zip(catalogue().values(), presets.values()):
        assert (p.name,p.about,p.source,p.cost,p.seeds)==(o.name,o.about,o.source,o.cost,o.replicates)
        assert [p.net,p.data,p.rounds]==[*rows.loc[p.name, ['net','data','rounds']]], p.name

@pytest.mark.parametrize('name', ['digit','qqqqqq','', 'Digits'])
def test_a_wrong_name_is_told_alike(name):
    said = []
    for f in (listed,preset):
        with pytest.raises(ValueError, match='There is no preset') as e: f(name)
        said.append(str(e.value))
    assert said[0]==said[1]

def test_it_holds_nothing_of_one_process():
    text = (root/'fastai_lottery'/'presets.json').read_text(encoding='utf-8')
    assert ' at 0x' not in text and all(set(o)==set(Listed._fields) for o in json.loads(text))

def test_a_built_package_has_it(tmp_path):
    "As a wheel has it: with the settings of pyproject.toml, and away from the checkout"
    skip = shutil.ignore_patterns('__pycache__')
    for o in ('fastai_lottery','pyproject.toml','README.md','LICENSE'):
        (shutil.copytree if (root/o).is_dir() else shutil.copy)(root/o, tmp_path/o, **(dict(ignore=skip) if (root/o).is_dir() else {}))
    pytest.importorskip('setuptools', minversion='77', reason='builds a package as pyproject.toml asks for')
    done = python('from setuptools import setup; setup()', 'build_py', '--build-lib', str(tmp_path/'built'), cwd=tmp_path, path='')
    assert done.returncode==0, done.stderr
    shutil.rmtree(tmp_path/'fastai_lottery')
    where = 'import fastai_lottery.catalogue as c; print(c.__file__); print(*c.catalogue())'
    done = python(where, cwd=tmp_path, path=tmp_path/'built')
    at,names = done.stdout.splitlines()
    assert Path(at).is_relative_to(tmp_path) and names.split()==[*presets], done.stderr

# --- loading the rest

def test_loading_in_a_new_process_and_in_an_old_one():
    "What a new process loads is never looked through again; what somebody had before may be freed as ever"
    code = """import gc
from fastai_lottery.catalogue import loading
seen = []
for i in range(2):
    with loading():
        assert not gc.isenabled()
        import torch
    assert gc.isenabled()
    seen.append(gc.get_freeze_count())
print(seen[0]>10_000, seen[0]>=seen[1])"""
    assert python(code).stdout.split()==['True','True']
