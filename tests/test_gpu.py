"The check for GPUs, bench/gpu.py: all of it on the CPU, small, and that it fails where something is wrong"
import ast,os,re,subprocess,sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
pytest.importorskip('psutil', reason='needs psutil, of the `bench` extra')
sys.path.append(str(root/'bench'))
import gpu

def asked(*args, cache=None):
    "Exit code and output of the command, on a machine without a GPU"
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES':'', **({'TORCHINDUCTOR_CACHE_DIR':str(cache)} if cache else {})}
    cmd = [sys.executable, str(root/'bench'/'gpu.py'), *args]
    r = subprocess.run(cmd, cwd=root, env=env, text=True, capture_output=True, timeout=900)
    return r.returncode,r.stdout,r.stderr

names = [n for p in sorted((root/'bench').glob('gpu_*.py')) for n in ast.parse(p.read_text(encoding='utf-8')).body]
listed = [f for f in names if isinstance(f, ast.FunctionDef) and any('check' in ast.unparse(d) for d in f.decorator_list)]

@pytest.mark.slow
def test_all_of_it_runs_small_on_a_cpu(tmp_path):
    code,out,err = asked('--cpu', cache=tmp_path)
    assert code==0, out+err
    head,_,*rows,last = out.strip().splitlines()
    assert 'no GPU takes part' in head and re.fullmatch(r'All \d+ are ok', last)
    rows = [o for o in rows if not o.startswith(' ')]
    assert len(rows)==int(last.split()[1])
    assert all(' ok ' in o and re.search(r'\d\.\d$', o) for o in rows)
    for f in listed:
        known = re.escape(ast.get_docstring(f)).replace(r'\{\}', '.+')
        assert any(re.match(known, o) for o in rows), f'no row of `{f.name}`'
    assert len(listed)>=15

def test_a_mask_that_is_broken_on_purpose_makes_it_fail():
    code,out,_ = asked('--cpu', '--broken', '--only', 'masks exact: f*')
    rows = [o for o in out.splitlines() if o.startswith('masks exact')]
    assert code==1 and len(rows)>=10
    assert all(re.search(r'WRONG +1 wrong bits, [1-9]\d* not 0', o) for o in rows), out
    assert f'{len(rows)} of {len(rows)} are WRONG' in out.splitlines()[-1]

def test_without_a_gpu_it_says_so_and_all_is_well():
    code,out,_ = asked()
    assert code==0 and out.strip()==gpu.no_gpu and 'No GPU' in out

def test_checks_that_nobody_has():
    code,out,err = asked('--cpu', '--only', 'no such check')
    assert code not in (0,None) and "no check matches 'no such check'" in err and 'masks exact: fused SGD' in err

@pytest.fixture
def kit():
    import gpu_kit
    return gpu_kit

def test_a_check_that_raises_is_a_wrong_row_and_the_others_run(kit, capsys):
    def fails(place): raise RuntimeError('CUDA error:\n  an illegal\tmemory access '+'x'*500)
    def lacks(place): raise kit.Lacks('needs 22 GiB')
    def warns(place):
        gpu.warnings.warn('streams differ')
        return kit.Found(True, 'fine')
    cs = [kit.Check('a', fails), kit.Check('b', lacks), kit.Check('c', warns), kit.Check('d', lambda _: kit.Found(False, '3', '0'))]
    rows = gpu.play(cs, kit.Place('cpu'))
    assert [r.ok for r in rows]==[False,None,True,False]
    assert rows[0].figure.startswith('RuntimeError: CUDA error: an illegal memory access') and len(rows[0].figure)<=160
    assert rows[1].figure=='needs 22 GiB' and rows[2].warned==('UserWarning: streams differ',)
    assert '\n    UserWarning: streams differ' in capsys.readouterr().out
    says,code = gpu.summed_up(rows)
    assert code==1 and says=='2 of 4 are WRONG, 1 left out: a; d'
    assert gpu.summed_up(rows[1:3])==('All 1 are ok, 1 left out', 0)

def test_tests_that_fail_or_do_not_run_are_told(tmp_path):
    (tmp_path/'x.xml').write_text('<a><testcase/><testcase><skipped/></testcase><testcase><failure/></testcase>'
                                  '<testcase><error/></testcase><testcase/></a>')
    assert gpu.outcomes(tmp_path/'x.xml')==(2,2,1)

def test_a_broken_mask_differs_in_one_bit(kit):
    import torch
    a = kit.Masks({'a':torch.ones(3,2)>0, 'b':torch.tensor([[True,False],[False,True]])})
    b = kit.broken(a)
    assert torch.equal(a['a'], b['a']) and int((a['b']!=b['b']).sum())==1 and b.n_kept==a.n_kept+1

def test_masks_by_hand_go_by_order_where_weights_tie(kit):
    import torch
    own = kit.by_hand({'a':torch.tensor([1.,-1.,3.]), 'b':torch.tensor([[1.,0.]])}, .6)
    assert own['a'].tolist()==[False,False,True] and own['b'].tolist()==[[True,False]]

@pytest.mark.parametrize('a,b,n', [([0.], [-0.], 1), ([1.,2.], [1.,2.], 0), ([1.], [1.,1.], 1), ([float('nan')], [float('nan')], 0)])
def test_bits_are_compared_not_values(a, b, n):
    import torch
    from gpu_keeping import differing
    assert differing(dict(a=torch.tensor(a)), dict(a=torch.tensor(b)))==n
    assert differing({}, dict(a=torch.tensor(b)))==1
