"Where things are written, by whom, and in which encoding"
import contextlib,io,os,runpy,shutil,subprocess,sys,threading
from pathlib import Path
import pytest,torch
from nets import *
from fastai_lottery.files import locked,own_path


root = Path(__file__).resolve().parent.parent

def ran(*args, stdin=None, cwd=None, **env):
    "A command in a process of its own"
    env = dict(os.environ, PYTHONPATH=str(root), PYTHONWARNINGS='ignore', **env)
    args = [sys.executable, '-W', 'ignore', *map(str, args)]
    return subprocess.run(args, input=stdin, capture_output=True, text=True, env=env, cwd=cwd)

# --- a path that a person gives

def test_a_path_is_made_whole_once(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    learner().fit_lottery(1, rounds=1, path='~/x')
    assert (tmp_path/'home'/'x'/'rounds.csv').exists() and not (tmp_path/'~').exists()
    learn = learner()
    learn.fit_lottery(1, rounds=0)
    f = learn.lottery.ticket().save('~/t')
    assert f==tmp_path/'home'/'t.safetensors' and Ticket.load('~/t').density==1
    learn.fit_ticket(learn.lottery.ticket(), 1, path='~/y')
    assert (tmp_path/'home'/'y'/'rounds.csv').exists()

def test_a_change_of_folder_in_a_callback_does_not_split_a_run(tmp_path, monkeypatch):
    class Wanders(Callback):
        def after_epoch(self):
            (tmp_path/'elsewhere').mkdir(exist_ok=True)
            os.chdir(tmp_path/'elsewhere')
    monkeypatch.chdir(tmp_path)
    learner(cbs=[LotteryCallback(), Wanders()]).fit_lottery(1, rounds=1, path='run')
    assert (tmp_path/'run'/'round_01').exists() and not list((tmp_path/'elsewhere').iterdir())

class As:
    "A path of its own kind"
    def __init__(self, path): self.path = path
    def __fspath__(self): return self.path
    def __repr__(self): return f'As({self.path!r})'

none = [*((o,ValueError) for o in ('',' ','a\0b','\ud800',As(''))), *((o,TypeError) for o in (7,b'x',As(b'x')))]
@pytest.mark.parametrize('path,exc', none, ids=repr)
def test_a_path_that_is_none(path, exc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for f in (lambda: own_path(path), lambda: learner().fit_lottery(1, path=path), lambda: Ticket.load(path)):
        with pytest.raises(exc, match='should (name|be)'): f()
    assert not list(tmp_path.iterdir())

def test_a_home_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no such home folder; '\./~nobody-here/x'"):
        learner().fit_lottery(1, rounds=0, path='~nobody-here/x')
    assert not list(tmp_path.iterdir())
    assert own_path('./~nobody-here')==tmp_path/'~nobody-here' and own_path(As('x'))==tmp_path/'x'
    with pytest.raises(ValueError, match='should name a file'): Ticket.load('/')

# --- the folder of a run

class Once(Callback):
    "Does something in the midst of round 1"
    def __init__(self): self.run_valid,self.done = False,False
    def after_epoch(self):
        if self.learn.lottery.round!=1 or self.done: return
        self.done = True
        self.learn.do()

@pytest.mark.parametrize('what', ['removed','renamed','another'])
def test_a_folder_that_goes_away_is_noticed(what, tmp_path):
    path,learn = tmp_path/'run',learner(cbs=[LotteryCallback(), Once()])
    def do():
        if what=='removed': shutil.rmtree(path)
        else: path.rename(tmp_path/'old')
        if what=='another': path.mkdir()
    learn.do = do
    with pytest.raises(OSError, match='was removed or renamed while the run went on.*rounds in memory are kept'):
        learn.fit_lottery(2, rounds=2, path=path)
    assert len(learn.lottery.rounds)>=1 and (not path.exists() or not list(path.iterdir()))

def test_a_round_that_goes_away_is_noticed(tmp_path):
    learn = learner(cbs=[LotteryCallback(), Once()])
    learn.do = lambda: (tmp_path/'run'/'round_00').rename(tmp_path/'old')
    with pytest.raises(OSError, match='round_00.* was removed or renamed while the run went on'):
        learn.fit_lottery(2, rounds=2, path=tmp_path/'run')
    (tmp_path/'old').rename(tmp_path/'run'/'round_00')
    learn.done = True
    learn.do = noop
    assert len(learn.fit_lottery(2, rounds=2, path=tmp_path/'run'))==3

def test_files_of_others_are_left_alone(tmp_path):
    path = tmp_path/'run'
    learner().fit_lottery(1, rounds=1, path=path)
    sub = path/'other'/'round_00'
    sub.mkdir(parents=True)
    theirs = [path/'.mine.tmp', path/'notes.tmp', sub/'.x.tmp', sub/'.ticket.fastai_lottery-tmp']
    ours = [path/'.run.jsonabc.fastai_lottery-tmp', path/'round_00'/'.ticketabc.fastai_lottery-tmp']
    for f in (*theirs, *ours): f.write_text('x')
    with pytest.raises(ValueError, match='other settings'): learner().fit_lottery(1, rounds=1, amount=.7, path=path)
    assert all(f.exists() for f in (*theirs, *ours))    # of a folder that is not taken
    learner().fit_lottery(1, rounds=1, path=path)
    assert all(f.exists() for f in theirs) and not any(f.exists() for f in ours)

# --- the lock

hold = '''import sys
from fastai_lottery.files import locked
for _ in sys.stdin:
    try:
        with locked(sys.argv[1]): print('got it', flush=True)
    except RuntimeError as e: print('refused:', e, flush=True)'''

@contextlib.contextmanager
def other(path):
    "A function that lets another process try to lock the folder, and gives what it says"
    args = [sys.executable, '-W', 'ignore', '-c', hold, str(path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=str(root)))
    with subprocess.Popen(args, text=True, bufsize=1, **pipes) as p:
        def tries():
            p.stdin.write('\n')
            return p.stdout.readline()
        try: yield tries
        finally: p.kill()

def test_a_lock_outlives_what_is_done_beside_it(tmp_path):
    path = tmp_path/'run'
    with other(path) as tries:
        with locked(path):
            shutil.copytree(path, tmp_path/'copy')
            (path/'.run.lock').read_text()
            assert 'refused' in tries()
            (path/'.run.lock').unlink()
            assert 'refused' in tries()
        assert 'got it' in tries()

def test_two_threads_do_not_both_get_in(tmp_path):
    got = []
    def other():
        try:
            with locked(tmp_path): got.append('in')
        except RuntimeError as e: got.append(str(e))
    with locked(tmp_path):
        t = threading.Thread(target=other)
        t.start()
        t.join()
    assert len(got)==1 and 'in use by this process' in got[0]

def test_a_lock_file_with_other_bytes(tmp_path):
    (tmp_path/'.run.lock').write_bytes(b'\xff\xfe\x00')
    with locked(tmp_path): pass

# --- encodings

uml = '''import sys; sys.path.insert(0, {tests!r})
from nets import *
def güte(p, y): return (p.argmax(1)==y).float().mean()
learn = learner(metrics=[güte])
learn.fit_lottery(1, rounds={n}, eval_every=2, path='run')
print(len(learn.lottery.rounds), list(learn.lottery.report())[5])'''

def test_a_metric_with_an_umlaut_in_every_locale(tmp_path, monkeypatch, capsys):
    narrow = dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONIOENCODING='ascii:replace')
    def write(n): (tmp_path/'a.py').write_text(uml.format(tests=str(root/'tests'), n=n), encoding='utf-8')
    write(0)
    done = ran('a.py', cwd=tmp_path, **narrow)
    assert done.returncode==0, done.stderr
    write(1)
    monkeypatch.chdir(tmp_path)
    runpy.run_path('a.py', run_name='__main__')    # goes on in the encoding of this process
    assert capsys.readouterr().out.split()[0]=='2'
    assert 'güte' in (tmp_path/'run'/'rounds.csv').read_text(encoding='utf-8')
    assert b'\r' not in (tmp_path/'run'/'rounds.csv').read_bytes()

# --- memory

def test_a_ticket_in_memory_is_not_its_file(tmp_path):
    t = Ticket(Masks({'w':torch.ones(300,300).bool()}), {'w':torch.full((300,300), 2.)}, {})
    f = t.save(tmp_path/'t')
    back = Ticket.load(f)
    with open(f, 'r+b') as o: o.write(bytes(f.stat().st_size))
    os.truncate(f, 10)
    assert torch.equal(back.weights['w'], t.weights['w']) and back.masks==t.masks

# --- scripts that play

script = "from fastai_lottery.all import *\nfor o in play('one-shot-tiny', 'out', replicates=1, jobs=1): pass\n"

def test_a_script_without_a_guard_is_told_so(tmp_path):
    (tmp_path/'a.py').write_text(script)
    last = ran('a.py', cwd=tmp_path).stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: play() was called while a process imported your script")
    assert "if __name__=='__main__':" in last

def test_a_script_from_stdin_is_told_so(tmp_path):
    done = ran('-', stdin=script, cwd=tmp_path)
    assert "this one, '<stdin>', is no file: save it as one" in done.stderr and not (tmp_path/'out').exists()

# --- the command line

def test_what_is_read_is_found_in_the_home_folder(out, tmp_path, monkeypatch):
    from fastai_lottery.experiments import measured,results
    monkeypatch.setenv('HOME', str(out.parent))
    assert results('~/a').equals(results(out))
    for f in (results, measured):
        with pytest.raises(ValueError, match='`out` should name'): f('')

@pytest.fixture(scope='module')
def out(tmp_path_factory):
    "A small run"
    d = tmp_path_factory.mktemp('runs')
    from fastai_lottery.cli import main
    assert main(['run', 'one-shot-tiny', '--replicates', '1', '--jobs', '1', '--out', str(d/'a')])==0
    return d/'a'

def test_a_report_where_nobody_can_write_is_shown(out, capsys):
    from fastai_lottery.cli import main
    for n in ('lottery.png','results.csv'):
        (out/n).unlink(missing_ok=True)
        (out/n).mkdir()
    assert main(['report', str(out)])==0
    said = capsys.readouterr().out
    assert 'Test accuracy' in said and said.count('could not be written:')==2
    for n in ('lottery.png','results.csv'): (out/n).rmdir()

def test_output_in_a_terminal_of_ascii(out):
    run = "import sys; from fastai_lottery.cli import main; sys.exit(main(['list']) or main(['report', sys.argv[1]]))"
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', run, str(out)], capture_output=True,
                          env=dict(os.environ, PYTHONPATH=str(root), PYTHONIOENCODING='ascii'))
    assert done.returncode==0 and len(done.stdout)>1000 and b'Test accuracy' in done.stdout, done.stderr

@pytest.mark.parametrize('enc', ['latin-1','cp1252'])
def test_output_in_any_encoding(out, enc, monkeypatch):
    from fastai_lottery.cli import main
    for args in (['list'], ['report', str(out)]):
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(said := io.BytesIO(), encoding=enc))
        assert main(args)==0
        sys.stdout.flush()
        assert len(said.getvalue())>500

def test_each_wrong_place_is_one_line(tmp_path, monkeypatch, capsys):
    from fastai_lottery.cli import main
    monkeypatch.chdir(tmp_path)
    wrong = [(['--data', str(tmp_path/'wrong')], 'is not there'), (['--replicates', '1000000000'], 'at most 100,000'),
             (['--out', ''], 'should name')]
    for args,says in wrong:
        assert main(['run', 'lenet-mnist', *args])==1
        err = capsys.readouterr().err.strip()
        assert says in err and '\n' not in err
    assert not (tmp_path/'wrong').exists()

def test_a_home_that_cannot_be_written(tmp_path):
    (tmp_path/'home').write_text('a file')
    code = "from fastai_lottery.data import data_root\ntry: data_root()\nexcept OSError as e: print(e)"
    env = {k:v for k,v in os.environ.items() if k not in ('FASTAI_HOME','FASTAI_LOTTERY_DATA')}
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                          env=dict(env, PYTHONPATH=str(root), FASTAI_HOME=str(tmp_path/'home'/'x'),
                                   HOME=str(tmp_path/'home')))
    assert 'cannot be written' in done.stdout and 'FASTAI_HOME' in done.stdout, done.stderr[-500:]
