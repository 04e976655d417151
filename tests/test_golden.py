"""Small runs of every kind give the figures that were recorded: to the last digit where the machine rounds alike, else but for rounding.
After a change that is meant: `python tests/golden.py --write tests/golden.json NAME...`"""
import json
import pytest
from torch import distributed as dist
import golden

recorded = json.loads(golden.records.read_text())
gloo = dist.is_available() and dist.is_gloo_available()

@pytest.fixture(scope='module')
def exact(): return golden.is_exact(recorded['about'])

def test_all_runs_are_recorded(): assert list(recorded['runs'])==list(golden.runs)

@pytest.mark.parametrize('name', recorded['runs'])
def test_golden(name, exact):
    if name=='distributed' and not gloo: pytest.skip('needs torch.distributed with gloo; this torch has none')
    if name=='killed' and not hasattr(golden.signal, 'SIGKILL'): pytest.skip('needs SIGKILL, which Windows has not')
    diff = golden.compare(name, recorded['runs'][name], golden.play_run(name), exact)
    if diff: pytest.fail(f'{name}: {diff}', pytrace=False)
