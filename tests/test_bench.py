"Each benchmark runs, at a tiny size; what it measures there means nothing"
import ast,os,re,subprocess,sys
from pathlib import Path
from xml.etree import ElementTree
import pytest

root = Path(__file__).resolve().parent.parent
files = {p.stem:p.read_text(encoding='utf-8') for p in sorted((root/'bench').glob('*.py'))}
trees = {k:ast.parse(s) for k,s in files.items()}
benches = [(k,n) for k,t in trees.items() for o in t.body if (n := getattr(o, 'name', '')).startswith('bench_')]

@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    "What became of each, by file and name: what it printed, and its error if there was one"
    pytest.importorskip('fasterai', reason='needs fasterai, of the `bench` extra')
    xml = tmp_path_factory.mktemp('bench')/'report.xml'
    opts = [f'-o{o}' for o in ('python_functions=bench_*','junit_logging=system-out')]
    cmd = [sys.executable,'-m','pytest','-q','-p','no:cacheprovider',*opts,'--junitxml',xml,'bench']
    r = subprocess.run(cmd, cwd=root, env={**os.environ,'LOTTERY_BENCH':'tiny'}, text=True, capture_output=True)
    assert xml.exists(), r.stdout+r.stderr
    res = {}
    for o in ElementTree.parse(xml).iter('testcase'):
        errors = [e.text for e in o if e.tag in ('failure','error')]
        res[o.get('classname').split('.')[-1],o.get('name')] = (o.findtext('system-out') or '', errors)
    return res

@pytest.mark.parametrize('file,name', benches)
def test_benchmark_runs(ran, file, name):
    assert (file,name) in ran, f'it did not run; what did: {ran}'
    out,errors = ran[file,name]
    assert not errors, errors[0]
    assert re.search(r'\d', out), 'it measured nothing'

# What benchmarks share, and a command of its own, `gpu`, with its parts: see test_gpu.py
others = {'common', *[k for k in files if re.match('gpu(_|$)', k)]}
def test_there_are_benchmarks(): assert len(benches)>=8 and {k for k,_ in benches}==files.keys()-others

@pytest.mark.parametrize('file', files)
def test_names_are_imported_by_name(file):
    "A star import would decide, by its place, which of two equal names is meant"
    stars = [o.module for o in ast.walk(trees[file]) if isinstance(o, ast.ImportFrom) and o.names[0].name=='*']
    assert not stars
