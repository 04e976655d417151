"Laws of 06_files: the lock, under all that happens to processes and folders; tables and labels"
import errno,os,re,shutil,signal,subprocess,sys,threading,warnings
from pathlib import Path
import pandas as pd,pytest,torch
import fastai_lottery.files as files
from fastai_lottery.files import locked,numbered,read_label,save_tensors
from fastai_lottery.tables import append_rows,read_rows,read_table,read_written,row_digest

# --- the lock

def refused(path, who='this process', **kw):
    with pytest.raises(RuntimeError) as e:
        with locked(path, **kw): pass
    assert str(e.value)==f"{str(path)!r} is in use by {who}: wait for it, stop it, or choose another folder"

def free(path):
    with locked(path): pass

def test_one_holder_in_a_process_by_whatever_name(tmp_path, monkeypatch):
    d = tmp_path/'run'
    (tmp_path/'link').symlink_to(d)
    monkeypatch.chdir(tmp_path)
    with locked(d):
        for o in (d, str(d), tmp_path/'link', Path('run'), tmp_path/'run'/'..'/'run'): refused(o)
        with locked(d, 'play'): refused(d, what='play')
    free(d)

def test_it_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError):
        with locked(tmp_path): raise KeyError
    assert (tmp_path/'.run.lock').read_text()=='', 'nobody is named who is not there'
    free(tmp_path)

def test_one_holder_among_threads(tmp_path):
    "Of eight that come at the same moment one gets it, and the others are told who has it"
    begin,end,got,said = threading.Barrier(8),threading.Event(),[],[]
    def go():
        begin.wait()
        try:
            with locked(tmp_path):
                got.append(1)
                end.wait(20)
        except RuntimeError as e: said.append(str(e))
        if len(said)==7: end.set()
    ts = [threading.Thread(target=go) for _ in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert len(got)==1 and len(said)==7 and all('is in use by ' in o for o in said)
    free(tmp_path)

def test_a_lock_taken_in_one_thread_and_given_back_in_another(tmp_path):
    held = locked(tmp_path)
    held.__enter__()
    t = threading.Thread(target=held.__exit__, args=(None,None,None))
    t.start()
    t.join()
    free(tmp_path)

other = """
import sys,time
from fastai_lottery.files import locked
with locked(sys.argv[1]):
    print('has it', flush=True)
    time.sleep(100)
"""

@pytest.fixture
def holder(tmp_path):
    "Another process that has the lock"
    env = dict(os.environ, PYTHONPATH=str(Path(files.__file__).parent.parent))
    p = subprocess.Popen([sys.executable, '-c', other, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env)
    assert p.stdout.readline()=='has it\n'
    yield p
    p.kill()
    p.wait()
    p.stdout.close()

def test_another_process_is_named_and_a_kill_frees(holder, tmp_path):
    for _ in range(2): refused(tmp_path, f'process {holder.pid}')    # who is refused leaves the name as it is
    holder.kill()
    holder.wait()
    assert (tmp_path/'.run.lock').read_text()==str(holder.pid), 'a number that is left behind says nothing'
    free(tmp_path)

def test_a_holder_without_a_number(holder, tmp_path):
    for text in ('', '12 34', '\x1b[31mme'):
        (tmp_path/'.run.lock').write_text(text)
        refused(tmp_path, 'process ?')

def test_a_copy_of_the_folder_takes_no_lock_away(tmp_path):
    "Locks of POSIX end when any handle on the file is closed"
    d = tmp_path/'run'
    with locked(d):
        shutil.copytree(d, tmp_path/'copy')
        assert in_child(lambda: refused(d, f'process {os.getppid()}'))==0
        free(tmp_path/'copy')

def test_a_lock_file_that_is_deleted(tmp_path):
    with locked(tmp_path):
        (tmp_path/'.run.lock').unlink()
        refused(tmp_path)
    free(tmp_path)

# --- forks

posix = pytest.mark.skipif(not hasattr(os,'fork'), reason='needs fork, which Windows has not')

def child(f):
    "The number of a forked process that does `f`, and ends with 0 if that went well"
    if pid := os.fork(): return pid
    code = 1
    try:
        f()
        code = 0
    finally: os._exit(code)

def in_child(f): return os.waitstatus_to_exitcode(os.waitpid(child(f), 0)[1])

@posix
def test_a_forked_child_holds_nothing_and_gives_nothing_back(tmp_path):
    held = locked(tmp_path)
    held.__enter__()
    assert in_child(lambda: refused(tmp_path, f'process {os.getppid()}'))==0
    assert in_child(lambda: held.__exit__(None, None, None))==0
    assert in_child(lambda: refused(tmp_path, f'process {os.getppid()}'))==0, 'a child gave it back'
    held.__exit__(None, None, None)
    free(tmp_path)

@posix
def test_a_forked_child_that_lives_on(tmp_path):
    "As workers of a loader do when their parent is killed"
    r,w = os.pipe()
    def parent():
        locked(tmp_path).__enter__()
        worker = child(lambda: signal.pause())
        os.write(w, str(worker).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    assert in_child(parent)==-signal.SIGKILL
    worker = int(os.read(r, 20))
    try: free(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(r)
        os.close(w)

# --- file systems and folders

@posix
@pytest.mark.parametrize('e', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, e):
    "A run is played there, and leaves nothing that would stop the next one"
    import fcntl
    def no(*args): raise OSError(e, os.strerror(e))
    monkeypatch.setattr(fcntl, 'flock', no)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with locked(tmp_path):
            refused(tmp_path)
            assert in_child(lambda: free(tmp_path))==0
        free(tmp_path)

def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'f').write_text('a file')
    for d in (tmp_path/'f', tmp_path/'f'/'run'):
        with pytest.raises(OSError, match='cannot write .*run.lock.*Choose a folder that you can write to'): free(d)
    (tmp_path/'.run.lock').mkdir()
    with pytest.raises(OSError, match='cannot write .*run.lock'): free(tmp_path)

@pytest.mark.skipif(not hasattr(os,'O_NOFOLLOW'), reason='links are followed here')
def test_a_lock_that_is_a_link(tmp_path):
    (tmp_path/'mine').write_text('important')
    (tmp_path/'.run.lock').symlink_to(tmp_path/'mine')
    with pytest.raises(OSError, match='cannot write .*run.lock'): free(tmp_path)
    assert (tmp_path/'mine').read_text()=='important'

@posix
def test_what_a_kill_leaves_can_be_told(tmp_path):
    "Killed in the midst of writing, by the kernel: a temporary file of ours, which the next run takes away, and no other"
    import resource
    def save():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0,0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000,10000))
        save_tensors(tmp_path/'net', dict(a=torch.ones(10000)), {})
    assert in_child(save)==-signal.SIGXFSZ
    left = [f.name for f in tmp_path.iterdir()]
    assert len(left)==1 and re.fullmatch(r'\.net\.safetensors.*\.fastai_lottery-tmp', left[0]), left

# --- tables

first = (
    'arm,round,accuracy,kept,name,good,gone,made,of,digest\n'
    'left,4,0.30000000000000004,12,"a, ""b""",True,,x0a1b2c3d,2,x657df82a\n'
    'left,4,0.3333333333333333,3,é,False,,x0a1b2c3d,2,x7b4ac045\n')

def test_a_table_of_the_first_version_reads_on(tmp_path):
    "As version 0.0.1 wrote it; and the same is written today"
    f = tmp_path/'measures.csv'
    f.write_text(first, encoding='utf-8')
    (tmp_path/'tables.json').write_text('{"measures.csv": 2}')
    df = read_written(f, 'accuracy')
    assert df.accuracy.tolist()==[.1+.2,1/3] and list(df)=='arm round accuracy kept name good gone'.split()
    rows = read_rows(f, drop=()).to_dict('records')
    f.unlink()
    append_rows(f, [], rows)
    assert f.read_text(encoding='utf-8')==first and (tmp_path/'tables.json').read_text()=='{"measures.csv": 2}'
    f.write_text(first.replace('a, ""b""','a, ""c""'), encoding='utf-8')
    with pytest.raises(ValueError, match='line 2 is not what was written'): read_rows(f)

def test_a_digest_does_not_care_how_a_number_was_kept():
    a = dict(arm='x', round=4, kept=3, loss=.5, none=None, gone=float('nan'), ok=True, seed=1, digest='x')
    b = dict(loss=torch.tensor(.5).item(), arm='x', round=4., kept=pd.Series([3])[0], ok=True)
    assert row_digest(a)==row_digest(b)!=row_digest({**b, 'ok':'yes'})
    assert all(row_digest({**b, **o})!=row_digest(b) for o in (dict(kept=4), dict(arm='y'), dict(ok=1), dict(new=0)))

def test_rows_are_added_and_counted(tmp_path):
    f,rows = tmp_path/'controls.csv',[]
    assert read_written(f).empty
    for k in (1,2): append_rows(f, rows, [dict(arm='a', round=k, i=i, made='m', of=2) for i in (0,1)])
    assert [(o['round'],o['i']) for _,o in read_written(f, 'i').iterrows()]==[(1,0),(1,1),(2,0),(2,1)]
    lines = f.read_text().splitlines(True)
    f.write_text(''.join(lines[:-1]))
    with pytest.raises(ValueError, match="has 1 of 2 rows of 'a' in round 2"): read_written(f)
    f.write_text(''.join(lines[:-2]))
    assert len(read_rows(f))==2
    with pytest.raises(ValueError, match='of 4 rows it has 2'): read_written(f)
    f.unlink()
    with pytest.raises(ValueError, match='of 4 rows it has 0'): read_written(f)

def test_a_table_without_a_column(tmp_path):
    (tmp_path/'t.csv').write_text('round,kept\n0,1\n')
    with pytest.raises(ValueError, match="t.csv' is damaged: it has no column 'mask_hash'"):
        read_table(tmp_path/'t.csv', ['round','mask_hash'])
    for b in (b'', b'\xff\xfe\x00', b'a,b\n1,2,3,4\n5,6\n1,2,3,4,5\n'):
        (tmp_path/'t.csv').write_bytes(b)
        with pytest.raises(ValueError, match="t.csv' is damaged"): read_table(tmp_path/'t.csv', ['a','b'])

def test_folders_by_number(tmp_path):
    for o in ('seed_0','seed_10','seed_2','seed_2_old','seed_x','my_seed_3'): (tmp_path/o).mkdir()
    (tmp_path/'seed_7').write_text('a file')
    assert {k:o.name for k,o in numbered(tmp_path, 'seed').items()}=={0:'seed_0', 2:'seed_2', 10:'seed_10'}

def test_a_label_alone(tmp_path):
    f = save_tensors(tmp_path/'t', dict(a=torch.ones(30)), dict(round=3))
    assert read_label(tmp_path/'t')==read_label(f)==dict(round=3)
    f.write_bytes(f.read_bytes()[:-1])
    with pytest.raises(ValueError, match="t.safetensors' is missing or damaged"): read_label(f)
    with pytest.raises(ValueError, match="u.safetensors' is missing or damaged"): read_label(tmp_path/'u')
