"The command line, and the presets that it plays: what it trains, what it refuses, how it stops and goes on"
import contextlib,dataclasses,io,json,math,os,re,shutil,signal,subprocess,sys,time
from pathlib import Path
import numpy as np,pandas as pd,pytest
from fastai_lottery.cli import main
from fastai_lottery.files import locked
from fastai_lottery.claims import compare_arms,show_arms
from fastai_lottery.experiments import measured,play_seed,results,stored
from fastai_lottery.presets import preset,presets
from fastai_lottery.sweeps import play
from fastai_lottery.scopes import inverse_mask,shuffle_mask
from fastai_lottery.tickets import Ticket

small = dict(rounds=2, epochs=2)
flags = '--rounds 2 --epochs 2 --replicates 2 --jobs 1'.split()

# --- helpers

def call(*args):
    "Exit status, stdout and stderr of `lottery ARGS`; any other exception than argparse's own is a traceback, and fails the test"
    with contextlib.redirect_stdout(io.StringIO()) as o, contextlib.redirect_stderr(io.StringIO()) as e:
        try: rc = main([str(a) for a in args])
        except SystemExit as x: rc = x.code
    return rc,o.getvalue(),e.getvalue()

def fails(*args, rc=(1,), has=()):
    "The one message of a command that should fail"
    code,out,err = call(*args)
    assert code in rc, f'{code}\n{out}\n{err}'
    assert 'Traceback' not in out+err
    for s in has: assert str(s) in err
    return err

def each_file(d):
    "By name; a lock holds the number of whoever had it last"
    return {str(p.relative_to(d)):p for p in sorted(Path(d).rglob('*')) if p.is_file() and p.suffix!='.lock'}
def files(d): return {k:p.read_bytes() for k,p in each_file(d).items()}
def times(d): return {k:p.stat().st_mtime_ns for k,p in each_file(d).items()}

def hashes(d):
    return {str(p.relative_to(d)):Ticket.load(p).masks.hash() for p in sorted(Path(d).rglob('ticket.safetensors'))}
def figures(d, n): return pd.read_csv(Path(d)/n).drop(columns=['seconds','digest'], errors='ignore')

@pytest.fixture(scope='session')
def done(tmp_path_factory):
    "A finished run of two replicates that nobody changes: its folder, and what `lottery run` printed"
    d = tmp_path_factory.mktemp('cli')/'run'
    rc,out,err = call('run', 'digits', *flags, '--out', d)
    assert rc==0, err
    return d,out

@pytest.fixture
def copy(done, tmp_path):
    "A copy of the finished run, to spoil"
    return shutil.copytree(done[0], tmp_path/'run')

@pytest.fixture
def no_network(monkeypatch):
    "A proxy where nobody listens: each download is refused at once, in the worker processes as well"
    for k in 'http_proxy https_proxy all_proxy'.split():
        for n in (k, k.upper()): monkeypatch.setenv(n, 'http://127.0.0.1:9')
    for n in ('no_proxy','NO_PROXY'): monkeypatch.delenv(n, raising=False)

# --- help and usage

def test_without_arguments_it_shows_its_commands():
    for args in [], ['--help'], ['-h']:
        rc,out,err = call(*args)
        assert rc==0 and err=='' and all(f'lottery {c}' in out for c in ('run','report','list'))
    rc,out,_ = call('run', '--help')
    assert rc==0 and all(o in out for o in '--rounds --replicates --epochs --data --out --jobs'.split())

def test_list_has_a_line_for_each_preset():
    rc,out,_ = call('list')
    assert rc==0 and max(map(len, out.splitlines()))<=104
    rows = {l.split()[0]:l for l in out.splitlines() if l.strip()}
    for n,p in presets.items():
        if p.cost=='seconds': assert n in out and n not in rows
        else: assert (m[0] if (m := re.search(r'\d{4}\.\d{5}', p.source)) else '') in rows[n]
    assert '3 days a seed' in rows['conv-4'] and 'cifar10' in rows['conv-4'] and 'conv_net' in rows['conv-4']

@pytest.mark.parametrize('name', ['conv-4','digits','signs-tiny'])
def test_list_tells_all_of_one(name):
    rc,out,_ = call('list', name)
    p,text = presets[name],' '.join(out.split())
    assert rc==0 and out.startswith(f'{name}\n')
    for o in (p.about, p.source, p.cost, f'lottery run {name}'): assert ' '.join(o.split()) in text

def test_a_word_picks_presets():
    rc,out,_ = call('list', 'SIGN')
    assert rc==0 and [l.split()[0] for l in out.splitlines()[1:]]==['lenet-mnist-12k','lenet-mnist-50k','signs-digits','signs-tiny']
    assert re.search("did you mean 'digits'.*No preset has 'digist'", fails('list', 'digist', has=['digist']))

def test_unknown_command_is_named():
    assert 'run' in ''.join(call('bogus')[1:])
    fails('bogus', rc=(2,), has=['bogus'])

@pytest.mark.parametrize('args',
                         [['run'], ['report'], ['run','digits','--rounds','two'],
                          ['run','digits','--round-up']], ids=' '.join)
def test_wrong_usage(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fails(*args, rc=(2,)) and not list(tmp_path.iterdir())

@pytest.mark.parametrize('name,near', [('digit','digits'), ('mnist','[a-z]+-mnist'), ('Digits','digits')])
def test_unknown_preset_with_near_names(name, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(rf"did you mean.*'{near}'", fails('run', name, has=[repr(name)]))
    assert not list(tmp_path.iterdir())

def test_unknown_preset_lists_them_all():
    with pytest.raises(ValueError, match='digits.*lenet-mnist'): preset('qqqqqq')

# --- arguments

@pytest.mark.parametrize('k,v', [('jobs',0), ('jobs',-2), ('rounds',-1), ('replicates',0), ('epochs',0)])
def test_number_out_of_range(k, v, tmp_path):
    code,out,err = call('run', 'digits', *flags, f'--{k}', v, '--out', tmp_path/'o')
    assert code in (1,2) and k in err and str(v) in err and 'Traceback' not in out+err
    assert 'cost' not in out, 'nothing is announced before the arguments are checked'
    assert not (tmp_path/'o').exists()

@pytest.mark.parametrize('kind', ['a file','below a file','read-only'])
def test_out_that_cannot_be_written(kind, tmp_path):
    (tmp_path/'f').write_text('mine')
    (tmp_path/'ro').mkdir(mode=0o500)
    ro = Path('/proc') if os.access(tmp_path/'ro', os.W_OK) else tmp_path/'ro'      # root may write anywhere but there
    out = {'a file':tmp_path/'f', 'below a file':tmp_path/'f'/'o', 'read-only':ro/'o'}[kind]
    fails('run', 'digits', *flags, '--out', out, has=[out])
    assert (tmp_path/'f').read_text()=='mine' and sorted(o.name for o in tmp_path.iterdir())==['f','ro']

def test_missing_data_says_where_and_why(tmp_path, no_network):
    (tmp_path/'data').mkdir()
    one = [o for k in ('rounds','epochs','replicates','jobs') for o in (f'--{k}', 1)]
    err = fails('run', 'lenet-mnist', *one, '--data', tmp_path/'data', '--out', tmp_path/'o',
                has=['MNIST', tmp_path/'data'])
    assert len(err.strip().splitlines())==1 and re.search(r'refused|URLError|urlopen',
                                                          err), 'the reason of the failed download'
    assert not list((tmp_path/'o').rglob('*.csv'))

def test_report_of_a_missing_and_of_an_empty_folder(tmp_path):
    (tmp_path/'empty').mkdir()
    for d in ('missing','empty'): fails('report', tmp_path/d, has=[tmp_path/d])
    assert not (tmp_path/'missing').exists() and not list((tmp_path/'empty').iterdir())

# --- what a run trains and shows

def test_a_run_trains_each_round_and_its_controls(done):
    df = results(done[0])
    got = df.groupby(['seed','round','arm']).size()
    assert got.to_dict()=={(s,k,a):1 for s in (0,1) for k,a in [(0,'dense'),(1,'ticket'),(2,'ticket'),(2,'reinit'),(2,'shuffle')]}
    for s in (0,1):
        d = df[df.seed==s].set_index(['round','arm'])
        assert d.density[0,'dense']==1 and d.density[2,'ticket']<d.density[1,'ticket']<1
        assert d.mask_hash[2,'reinit']==d.mask_hash[2,'ticket']!=d.mask_hash[2,'shuffle']
        assert d.kept[2,'shuffle']==d.kept[2,'reinit']==d.kept[2,'ticket']
    assert (df.iterations==2*20).all() and df.es_test_accuracy.between(.1,1).all()
    assert df.groupby(['round','arm']).mask_hash.nunique().drop(0).eq(2).all(), 'each seed its own masks'

def test_a_run_shows_its_table_and_writes_its_files(done):
    d,out = done
    assert (d/'lottery.png').stat().st_size>5000 and len(pd.read_csv(d/'results.csv'))==10
    for _,row in show_arms(results(d)).iterrows(): assert all(v in out for v in row)
    assert 'n = 2 seeds' in out and all(str(d/o) in out for o in ('lottery.png','results.csv'))
    assert sum(bool(re.match(r' +[01] +[0-2] .* (dense|ticket|reinit|shuffle) ',
                             l)) for l in out.splitlines())==10, 'one line a training'

def _python(out):
    "The Python that a command shows, as it can be typed"
    ls = out.split('in Python')[1].splitlines()[1:]
    return '\n'.join(l[4:] for l in ls if l.startswith('    '))

def test_the_python_that_run_shows_gives_the_same_run(done):
    d,out = done
    was,ns = files(d),{}
    with contextlib.redirect_stdout(io.StringIO()): exec(_python(out), ns)
    pd.testing.assert_frame_equal(ns['learn'].lottery.report(full=True).drop(columns='seconds'),
                                  figures(d/'seed_00', 'rounds.csv'))
    assert files(d)==was

def test_report_gives_the_same_table_and_python(copy):
    (copy/'results.csv').unlink()
    (copy/'lottery.png').unlink()
    rc,out,err = call('report', copy)
    assert rc==0 and (copy/'results.csv').exists() and (copy/'lottery.png').exists(), err
    for _,row in show_arms(results(copy)).iterrows(): assert all(v in out for v in row)
    ns = {}
    exec(_python(out), ns)
    assert len(ns['df'])==10

def test_report_of_an_unfinished_run(copy):
    shutil.rmtree(copy/'seed_00')
    for f in ('controls.csv','tables.json'): (copy/'seed_01'/f).unlink()
    rc,out,err = call('report', copy)
    assert rc==0 and 'no controls yet' in out, err
    assert 'seed_00' not in out, 'a replicate that is not there'

def test_results_skips_replicates_without_a_round(copy):
    shutil.rmtree(copy/'seed_00')
    (copy/'seed_00').mkdir()
    assert set(results(copy).seed)=={1}
    with pytest.raises(FileNotFoundError, match='seed_00'): results(copy/'seed_00')

# --- going on

def test_a_finished_run_again_trains_nothing(copy):
    for p in copy.rglob('*'): os.utime(p, ns=(10**18, 10**18))
    was,at = files(copy),{k:v for k,v in times(copy).items() if k.startswith('seed')}
    rc,out,err = call('run', 'digits', *flags, '--out', copy)
    assert rc==0, err
    assert {k:v for k,v in times(copy).items() if k.startswith('seed')}==at
    assert {k:v for k,v in files(copy).items() if k!='lottery.png'}=={k:v for k,v in was.items() if k!='lottery.png'}

def test_more_rounds_train_every_planned_level(copy):
    was,row = files(copy/'seed_00'),pd.read_csv(copy/'seed_00'/'controls.csv')
    shutil.rmtree(copy/'seed_01')
    seen = list(play('digits', copy, replicates=1, jobs=1, rounds=4, epochs=2))
    df = results(copy)
    assert list(df[df.arm.isin(['dense','ticket'])]['round'])==[0,1,2,3,4]
    want = {(k,a) for k in (2,3) for a in ('reinit',
                                           'shuffle')}      # 2 is the last of `--rounds 2`, 3 a level of the preset
    assert {(k,a) for k,a in zip(df['round'], df.arm) if a in ('reinit','shuffle')}==want
    now = files(copy/'seed_00')
    assert all(now[k]==v for k,v in was.items() if not k.endswith(('s.csv','tables.json'))), 'what is finished stays as it is'
    pd.testing.assert_frame_equal(pd.read_csv(copy/'seed_00'/'controls.csv').iloc[:2], row)
    assert all(a<=b for a,b in seen) and seen[-1][0]==seen[-1][1], f'(finished, planned): {seen}'

def test_controls_go_on_by_name_not_by_position(copy):
    f = copy/'seed_00'/'controls.csv'
    full = figures(f.parent, f.name)
    pd.read_csv(f).iloc[1:].to_csv(f, index=False)      # the first is missing, not the last
    play_seed(preset('digits'), 0, f.parent, **small)
    got = figures(f.parent, f.name).sort_values(['round','arm'], ignore_index=True)
    assert list(zip(got['round'],got.arm))==[(2,'reinit'),(2,'shuffle')]
    assert list(got.mask_hash)==list(full.sort_values(['round','arm']).mask_hash)

# --- folders of something else

others = {'preset':('lenet-mnist --rounds 2 --epochs 2','lenet-mnist'),
          'epochs':('digits --rounds 2 --epochs 3','epoch'),
    'default epochs':('digits','epoch')}
@pytest.mark.parametrize('args,word', others.values(), ids=others)
def test_a_folder_of_another_experiment_is_refused(args, word, copy, tmp_path, no_network):
    was,at = files(copy),times(copy)
    fails('run', *args.split(), '--replicates', 2, '--jobs', 1, '--data', tmp_path, '--out', copy, has=[word, copy])
    assert files(copy)==was and times(copy)==at

# --- damaged files

damage = dict(
    empty=lambda b: b'',
    half=lambda b: b[:len(b)//2],
    noise=lambda b: bytes(range(256))*4,
    other=lambda b: b'a,b\n1,2\n',
    bit=lambda b: b[:-9]+bytes([b[-9]^1])+b[-8:])

def _flip_digit(f, i=-1):
    "Another digit in the `i`-th of the long numbers of `f`"
    b = f.read_text()
    m = [*re.finditer(r'0\.\d{6,}', b)][i]
    at = m.start()+4
    f.write_text(b[:at]+str((int(b[at])+1)%10)+b[at+1:])
def _cut_line(f): f.write_text(''.join(f.read_text().splitlines(True)[:-1]))

def _named(e, f): assert str(f) in str(e), f'the message should name {f}: {e}'

damaged = [(f'seed_00/{n}.csv',h) for n in ('rounds','controls') for h in ('empty','noise','other')]
@pytest.mark.parametrize('f,how', [('play.json','half'), ('play.json','empty'), *damaged])
def test_report_of_damaged_files(f, how, copy):
    (copy/f).write_bytes(damage[how]((copy/f).read_bytes()))
    was = files(copy)
    _named(fails('report', copy), copy/f)
    assert files(copy)==was

def _cut_lines(f):
    for _ in range(2): _cut_line(f)

not_dicts = 'null','[]','3','"x"'
spoiled = [*[(f'seed_01/{n}.csv',s) for n in ('rounds','controls') for s in (_flip_digit, Path.unlink)],
    ('seed_00/controls.csv',_cut_line), ('seed_00/rounds.csv',_cut_lines), ('seed_00/rounds.csv',lambda f: _flip_digit(f, 0)),
    ('seed_00/round_01/ticket.safetensors',lambda f: f.write_bytes(f.read_bytes()[:-50])),
    ('seed_00/tables.json',lambda f: f.write_text('[]')),
    *[('play.json',lambda f, s=s: f.write_text(s)) for s in not_dicts]]

@pytest.mark.parametrize('f,spoil', spoiled)
def test_report_of_figures_that_are_not_what_was_written(f, spoil, copy):
    spoil(copy/f)
    was = files(copy)
    _named(fails('report', copy), copy/f)
    assert files(copy)==was

@pytest.mark.parametrize('s', not_dicts)
def test_run_with_a_play_json_of_another_kind(s, copy):
    (copy/'play.json').write_text(s)
    was = files(copy)
    _named(fails('run', 'digits', *flags, '--out', copy), copy/'play.json')
    assert files(copy)==was

def test_report_of_a_folder_that_an_older_version_wrote(copy):
    "Without tables.json, and tables without digests: nothing is checked but the rounds, by their tickets"
    want = results(copy)
    for s in ('seed_00','seed_01'):
        (copy/s/'tables.json').unlink()
        f = copy/s/'controls.csv'
        pd.read_csv(f, dtype=dict(mask_hash=str)).drop(columns=['digest','made','of']).to_csv(f, index=False)
    pd.testing.assert_frame_equal(results(copy), want)
    play_seed(preset('digits'), 0, copy/'seed_00', **small)
    pd.testing.assert_frame_equal(results(copy), want)

def test_a_copy_of_a_replicate_is_no_replicate(copy):
    want = results(copy)
    shutil.copytree(copy/'seed_00', copy/'seed_00_old')
    shutil.copytree(copy/'seed_00'/'round_01', copy/'seed_00'/'round_01_old')
    (copy/'seed_notes').write_text('')
    assert call('report', copy)[0]==0
    pd.testing.assert_frame_equal(results(copy), want)

def test_a_second_process_leaves_play_json_alone(copy):
    was = (copy/'play.json').read_bytes()
    (copy/'play.json').write_text(json.dumps({**json.loads(was), 'replicates':7}))
    was = (copy/'play.json').read_bytes()
    with locked(copy, 'play'): fails('run', 'digits', *flags, '--out', copy, has=['in use'])
    assert (copy/'play.json').read_bytes()==was

# --- controls and measures

def _two(run, k): return [dict(a=.1*k), dict(a=.2*k)]
_some = dict(controls=dict(shuffle=dict(mask=shuffle_mask)), measures=dict(two=_two, one=lambda run,k: dict(a=1.)),
             at=dict(two=(1,2)))
def _lab(d, **kw):
    p = dataclasses.replace(preset('digits'), **{**_some, **kw})
    return play_seed(p, 0, d/'seed_00', rounds=2, epochs=1)

@pytest.mark.parametrize('line', [2, 4])
def test_measures_cut_at_a_line_end(line, tmp_path):
    "In the midst of a group: an error, whoever reads; between groups the rest is played again"
    _lab(tmp_path)
    f = tmp_path/'seed_00'/'measures.csv'
    ls = f.read_text().splitlines(True)
    want = measured(tmp_path)
    assert len(ls)==6
    for n in (line,3):
        f.write_text(''.join(ls[:n]))
        (tmp_path/'seed_00'/'tables.json').unlink(missing_ok=True)
        if n==3:
            _lab(tmp_path)
            pd.testing.assert_frame_equal(measured(tmp_path), want)
        else:
            for g in (lambda: _lab(tmp_path), lambda: measured(tmp_path)):
                with pytest.raises(ValueError, match="it has 1 of 2 rows of 'two' in round"): g()

def test_measures_that_were_there(tmp_path):
    _lab(tmp_path)
    f = tmp_path/'seed_00'/'measures.csv'
    ls = f.read_text().splitlines(True)
    want = measured(tmp_path)
    f.write_text(''.join(ls[:3]))
    with pytest.raises(ValueError, match='of 5 rows it has 2'): measured(tmp_path)
    f.unlink()
    with pytest.raises(ValueError, match='of 5 rows it has 0'): results(tmp_path)
    _lab(tmp_path)
    pd.testing.assert_frame_equal(measured(tmp_path), want)

@pytest.mark.parametrize('kw,a,f', [
    (dict(controls=dict(shuffle=dict(mask=inverse_mask))),'shuffle','controls.csv'),
    (dict(controls=dict(shuffle=lambda run,k: run.fit(run.ticket(k)))),'shuffle','controls.csv'),
    (dict(measures=dict(two=_two, one=lambda run,k: dict(a=2.))),'one','measures.csv')])
def test_another_control_or_measure_of_the_same_name(kw, a, f, tmp_path):
    want = _lab(tmp_path)
    was = files(tmp_path)
    with pytest.raises(ValueError, match=f"holds '{a}' .round 2. made in another way") as e: _lab(tmp_path, **kw)
    assert str(tmp_path/'seed_00'/f) in str(e.value) and files(tmp_path)==was
    pd.testing.assert_frame_equal(_lab(tmp_path), want)

def test_run_with_a_damaged_play_json(copy):
    (copy/'play.json').write_text('{"preset": "dig')
    was = files(copy)
    _named(fails('run', 'digits', *flags, '--out', copy), copy/'play.json')
    assert files(copy)==was

going_on = {'run.json':'half empty', 'rounds.csv':'empty noise other', 'controls.csv':'empty noise other',
    'round_02/ticket.safetensors':'half bit', 'round_02/weights.safetensors':'half', 'init.safetensors':'noise'}

@pytest.mark.parametrize('f,how', [(f,h) for f,hs in going_on.items() for h in hs.split()])
def test_going_on_with_damaged_files(f, how, copy):
    d = copy/'seed_00'
    (d/f).write_bytes(damage[how]((d/f).read_bytes()))
    was = files(copy)
    with pytest.raises((ValueError,OSError)) as e:
        play_seed(preset('digits'), 0, d, **small)       # what `main` prints in one line
    _named(e.value, d/f)
    assert files(copy)==was

def test_going_on_without_a_ticket_that_should_be_there(copy):
    f = copy/'seed_00'/'round_01'/'ticket.safetensors'
    f.unlink()
    was = files(copy)
    with pytest.raises((ValueError,OSError)) as e: play_seed(preset('digits'), 0, copy/'seed_00', **small)
    _named(e.value, f)
    assert files(copy)==was

# --- Ctrl-C

def _alive(group):
    "Processes of a group that are not zombies"
    if not Path('/proc/self/stat').exists():
        out = subprocess.run(['ps','-A','-o','pgid=,stat=,pid='], capture_output=True, text=True, check=True).stdout
        return [int(p) for g,s,p in map(str.split, out.splitlines()) if int(g)==group and s[0]!='Z']
    res = []
    for p in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            s = p.read_text().rpartition(')')[2].split()
            if int(s[2])==group and s[0]!='Z': res.append(int(p.parent.name))
    return res

def _until(f, secs=120):
    "Wait for `f`, long enough for a busy machine"
    end = time.monotonic()+secs
    while not f() and time.monotonic()<end: time.sleep(.05)
    return f()

_main = """import signal,sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from fastai_lottery.cli import main
sys.exit(main())"""

@contextlib.contextmanager
def _started(d, args):
    "The command in a process group of its own, with its outputs in `d`; nothing of it is left behind"
    with open(d/'out','w') as o, open(d/'err','w') as e:
        p = subprocess.Popen([sys.executable,'-c',_main,*args], stdout=o, stderr=e, start_new_session=True)
    try: yield p
    finally:
        with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)
        p.wait()

def _stop_in_the_midst(p, d):
    "Ctrl-C once the first round is there; the exit status"
    assert _until(lambda: (d/'run'/'seed_00'/'rounds.csv').exists() or p.poll() is not None) and p.poll() is None, (d/'err').read_text()
    os.kill(p.pid, signal.SIGINT)       # the parent alone: its workers have to be told
    rc = p.wait(timeout=60)
    assert _until(lambda: not _alive(p.pid), 60), f'left behind: {_alive(p.pid)}'
    return rc

def test_ctrl_c_stops_at_once_and_the_same_command_goes_on(done, tmp_path):
    d,args = tmp_path/'run',['run','digits',*flags,'--out',str(tmp_path/'run')]
    with _started(tmp_path, args) as p: rc,err = _stop_in_the_midst(p, tmp_path),(tmp_path/'err').read_text()
    assert rc==130 and 'stopped' in err and 'Traceback' not in err, err
    n,at = len(results(d)),times(d/'seed_00'/'round_00')
    assert 1<=n<10 and not (d/'seed_01'/'controls.csv').exists(), 'replicates that waited are not played after a stop'
    rc,_,err = call(*args)
    assert rc==0, err
    assert times(d/'seed_00'/'round_00')==at, 'the finished round was not trained again'
    assert hashes(d)==hashes(done[0]) and len(hashes(d))==6
    for s in ('seed_00','seed_01'):
        for n in ('rounds.csv','controls.csv'):
            pd.testing.assert_frame_equal(figures(d/s, n), figures(done[0]/s, n), check_exact=True)

# --- comparing the arms: numbers by hand

def frame(**cells):
    "`a3=[…]` are the values of arm `a` in round 3, for seeds 0, 1, …; None is a seed that was not played. Rows come in no order"
    def row(n, s, v):
        return dict(arm=n.rstrip('0123456789'), round=int(re.search(r'\d+', n)[0]), seed=s, es_test_accuracy=v)
    df = pd.DataFrame([row(n, s, v) for n,vs in cells.items() for s,v in enumerate(vs) if v is not None])
    df['density'] = .8**df['round']
    return df.sample(frac=1, random_state=0)

t2 = .95/math.sqrt(2*.975*.025)                     # Student's t, 2 degrees of freedom: the .975 quantile
def p2(t): return 1-abs(t)/math.sqrt(2+t*t)         # and the two-sided p
near = lambda x: pytest.approx(x, rel=1e-9, abs=1e-12)

dense = dict(dense0=[.90,.92,.94])
one = dict(ticket3=[.93,.95,.94], reinit3=[.91,.92,.93], random3=[.90,.90,.90])
two = dict(ticket7=[.90,.92,.91], reinit7=[.80,.83,.81], random7=[.50,.56,.50])

def test_compare_arms_by_hand():
    t = compare_arms(frame(**dense, **one, **two)).set_index('round')
    assert list(t.index)==[3,7] and list(t.n)==[3,3] and t.density[7]==near(.8**7)
    assert (t.dense[3],t.ticket[3],t.reinit[3],t.random[3])==near((.92,.94,.92,.90))
    assert (t.dense_half[3],t.ticket_half[3],t.random_half[3])==near((t2*.02/3**.5, t2*.01/3**.5, 0))
    # ticket - dense: .03 .03 .00, ticket - reinit: .02 .03 .01; their standard errors are .01 and .01/√3
    assert (t.vs_dense[3],t.vs_dense_half[3])==near((.02,t2*.01))
    assert (t.vs_reinit[3],t.vs_reinit_half[3])==near((.02,t2*.01/3**.5))
    assert (t.vs_reinit[7],t.vs_random[7])==near((.0966666666666667,.39))
    # Holm over the two levels: the smaller p twice, the other at least as much
    mean = (.10+.09+.10)/3
    sd = math.sqrt(((.10-mean)**2+(.09-mean)**2+(.10-mean)**2)/2)
    p3,p7 = p2(.02/(.01/3**.5)),p2(mean/(sd/3**.5))
    assert p7<p3 and t.p_reinit[7]==near(2*p7) and t.p_reinit[3]==near(max(2*p7,p3))
    # ticket - dense is .02 ± (t = 2) and then .00 .00 -.03 (t = -1)
    assert t.p_dense[3]==near(2*p2(2)) and t.p_dense[7]==near(max(2*p2(2),p2(1)))

def test_show_arms_by_hand():
    s = show_arms(frame(**dense, **one, **two)).map(lambda v: v.replace('\xa0',' '))
    assert list(s.index)==['51.2 %','21.0 %'] and s.index.name=='weights left'
    assert list(s)==['dense','ticket','reinit','random','ticket − reinit','ticket − random']
    assert list(s.iloc[0])==['92.00 ± 4.97','94.00 ± 2.48','92.00 ± 2.48','90.00 ± 0.00','2.00 ± 2.48','4.00 ± 2.48 *']
    assert s['ticket − reinit'].iloc[1]=='9.67 ± 1.43 *'
    assert show_arms(frame(**dense, **one), scale=1, nd=3).ticket.iloc[0]=='0.940\xa0±\xa00.025'

def test_pairs_are_of_the_same_seed():
    t = compare_arms(frame(**dense, ticket3=[.93,.95,.94], reinit3=[.91,None,.93], random3=[.90,.91,.92])).iloc[0]
    assert t.vs_reinit==near(.015) and t.reinit==near(.92)      # seeds 0 and 2: .02 and .01
    assert t.vs_random==near((.03+.04+.02)/3)

def test_old_tables_are_read_under_the_names_of_today():
    df = frame(**dense, **one, **two)
    old = df.assign(mask=np.where(df.arm=='random', 'shuffle_mask', 'ticket'))
    assert list(show_arms(old))[3]=='shuffle' and list(show_arms(df))[3]=='random'
    assert show_arms(old).shuffle.tolist()==show_arms(df).random.tolist()
    net = df.assign(mask=np.where(df.arm=='random', 'random_mask', 'ticket'))
    assert list(show_arms(net))[3]=='random', 'over the net, and so it is called'

def test_figures_that_the_repository_keeps(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert {'dense','ticket','reinit','shuffle'}=={*stored('digits').arm}
    assert {'ticket','shuffle'}<={*stored('lenet-mnist-12k-measures')['mask'].dropna()} and 'random' in {*stored('criteria-mnist').arm}
    with pytest.raises(FileNotFoundError, match="no figures of 'nothing'.*digits"): stored('nothing')

def test_another_figure_can_be_compared():
    df = frame(**dense, **one)
    df['loss'] = 1-df.es_test_accuracy
    t = compare_arms(df, 'loss').iloc[0]
    assert t.ticket==near(.06) and t.vs_reinit==near(-.02)

def test_a_single_seed_shows_means_and_claims_nothing():
    df = frame(dense0=[.9], ticket3=[.93], reinit3=[.91], random3=[.9])
    t = compare_arms(df).iloc[0]
    assert (t.dense,t.ticket,t.reinit,t.n)==(.9,.93,.91,1) and math.isnan(t.ticket_half)
    assert not any(pd.notna(v) for k,v in t.items() if k.startswith(('p_','vs_')))
    s = show_arms(df).iloc[0]
    assert s.ticket=='93.00' and not any('*' in v or '±' in v for v in s)

def test_a_nan_is_not_hidden_and_spoils_no_other_arm():
    good,df = compare_arms(frame(**dense, **one, **two)),frame(**dense, **{**one, 'random3':[.90,math.nan,.90]}, **two)
    bad = compare_arms(df)
    assert math.isnan(bad.random[0]) and math.isnan(bad.vs_random[0]) and math.isnan(bad.p_random[0])
    same = [c for c in good if 'random' not in c]
    pd.testing.assert_frame_equal(bad[same], good[same])
    assert (bad.random[1],bad.vs_random[1])==(good.random[1],good.vs_random[1])
    s = show_arms(df)
    assert not re.search(r'[\d*]', s['ticket − random'].iloc[0]) and s['ticket − reinit'].iloc[1].endswith('*')

def test_an_arm_that_a_level_lacks():
    last = dict(ticket10=[.90,.92,.93], reinit10=[.80,.83,.87], random10=[.40,.45,.47])
    df = frame(**dense, **one, **{k:v for k,v in two.items() if k!='random7'}, **last)
    t,full = compare_arms(df).set_index('round'),compare_arms(frame(**dense, **one, **two, **last)).set_index('round')
    assert list(t.index)==[3,7,10] and math.isnan(t.random[7]) and math.isnan(t.vs_random[7])
    same = [c for c in full if 'random' not in c]
    pd.testing.assert_frame_equal(t[same], full[same])
    # ticket - random is .03 .05 .04 and .50 .47 .46: Holm over the two levels that have it
    a,b = p2(.04/(.01/3**.5)),p2(np.mean([.5,.47,.46])/(np.std([.5,.47,.46], ddof=1)/3**.5))
    assert b<a and t.p_random[10]==near(2*b) and t.p_random[3]==near(max(2*b,a))
    s = show_arms(df)
    assert not re.search(r'[\d*]', s.random.iloc[1]+s['ticket − random'].iloc[1]), 'no figure where there is none'

def test_no_controls_no_table():
    df = frame(**dense, ticket3=[.93,.95,.94])
    assert len(compare_arms(df))==len(show_arms(df))==0
