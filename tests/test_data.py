"Laws of 30_data: splits, orders, private randomness, files, and what a `Learner` does with its loaders"
import gzip, hashlib, pickle, random, re, struct, threading
from copy import deepcopy
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np, pytest, torch
from torch import nn
from torchvision import datasets as tvd
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner, MSELossFlat
from fastai.basics import accuracy, load_learner, noop, set_seed
import fastai.callback.schedule # noqa: F401, patches `fit_one_cycle` and `lr_find` on `Learner`
from fastai_lottery.data import *
from fastai_lottery.data import check_known

def rng_state(): return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
def order(dl): return torch.cat([x.flatten(1)[:,0] for x,*_ in dl]).int().tolist()
def tiny(n=50, bs=8, **kw):
    return TensorDL(TensorDS(torch.arange(float(n))[:,None], torch.arange(n)%3, vocab=list('abc')), bs=bs, **kw)
def mlp(n): return nn.Sequential(nn.Flatten(), nn.Linear(n,16), nn.ReLU(), nn.Linear(16,10))
def quiet(learn, n=1):
    with learn.no_logging(), learn.no_mbar(): learn.fit(n)

# ---- files in the real formats, tiny

def idx(f, a): f.write_bytes(struct.pack(f'>HBB{a.ndim}I', 0, 8, a.ndim, *a.shape) + a.astype(np.uint8).tobytes())

def images(n, start=0, shape=(28,28)):
    "`n` images that tell which they are: pixels 0 and 1 of the first channel spell the index"
    x = np.random.RandomState(start).randint(0, 256, (n,*shape)).astype(np.uint8)
    i = np.arange(start, start+n)
    flat = x.reshape(n,-1)
    flat[:,0],flat[:,1] = i//256,i%256
    return x

@pytest.fixture(params=['MNIST','FashionMNIST'])
def idx_root(request, tmp_path):
    raw = tmp_path/request.param/'raw'
    raw.mkdir(parents=True)
    for part,n,start in (('train',300,0),('t10k',40,300)):
        idx(raw/f'{part}-images-idx3-ubyte', images(n, start))
        idx(raw/f'{part}-labels-idx1-ubyte', np.arange(n)%10)
    return tmp_path, partial({'MNIST':mnist,'FashionMNIST':fashion_mnist}[request.param], known=False)

@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    "A small CIFAR-10 in its own format. torchvision checks md5 sums before it unpickles: it is told those of these files"
    base = tmp_path/'cifar-10-batches-py'
    base.mkdir()
    def write(name, d):
        b = pickle.dumps(d)
        (base/name).write_bytes(b)
        return hashlib.md5(b).hexdigest()
    batch = lambda i: {'data':images(20, 20*i, (3,32,32)).reshape(20,-1), 'labels':[j%10 for j in range(20)]}
    train = [[f'data_batch_{i+1}', write(f'data_batch_{i+1}', batch(i))] for i in range(5)]
    monkeypatch.setattr(tvd.CIFAR10, 'train_list', train)
    monkeypatch.setattr(tvd.CIFAR10, 'test_list', [['test_batch', write('test_batch', batch(5))]])
    names = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
    monkeypatch.setattr(tvd.CIFAR10, 'meta', {**tvd.CIFAR10.meta, 'md5':write('batches.meta', {'label_names':names})})
    return tmp_path

def raw_pixels(ds):
    "The bytes that `ds` was made from"
    mean,std = (s.float()[:,None,None] for s in ds.stats)
    return (ds.x.cpu()*std+mean).round().int()

def which(ds):
    p = raw_pixels(ds)[:,0].flatten(1)
    return (p[:,0]*256+p[:,1]).tolist()

# ---- splits

@pytest.mark.parametrize('n,labels', [(1,False),(97,False),(97,True),(1797,True)])
def test_split_order_is_a_permutation_and_fixed(n, labels):
    y = np.arange(n)%7 if labels else None
    a = split_order(n, y)
    assert sorted(a) == list(range(n))
    np.random.seed(n)
    random.seed(n)
    assert (split_order(n, y) == a).all()
    if n > 10: assert (split_order(n, y, seed=1) != a).any()

def test_split_order_is_the_same_on_every_machine():
    assert split_order(10).tolist() == [2,8,4,9,1,6,7,3,0,5]
    assert split_order(8, [0,0,0,0,1,1,1,1]).tolist() == [6,2,1,7,3,5,0,4]

def test_every_stretch_is_stratified():
    y = np.array([0]*700+[1]*200+[2]*100)
    np.random.RandomState(1).shuffle(y)
    o = y[split_order(1000, y)]
    for a in range(0, 1000, 100):
        assert np.abs(np.bincount(o[a:a+100], minlength=3)-[70,20,10]).max() <= 1

def test_digits_split():
    dls = digits(seed=0)
    assert [len(dl.dataset) for dl in dls] == [1257,180,360]
    assert len(dls.train) == 20 and all(len(y)==60 for _,y in dls.train)
    assert [dl.shuffle for dl in dls] == [True,False,False] and dls[2].one_batch()[1].equal(dls[2].dataset.y[:500])
    for dl in dls: # each digit within one item of its share
        share = torch.cat([d.dataset.y for d in dls]).bincount()*len(dl.dataset)/1797
        assert (dl.dataset.y.bincount()-share).abs().max() <= 1.01
    # disjoint and complete: together they are scikit-learn's images, each once
    from sklearn.datasets import load_digits
    def rows(ds): return torch.cat([raw_pixels(ds).flatten(1), ds.y.cpu().int()[:,None]], 1)
    got = torch.cat([rows(dl.dataset) for dl in dls]).tolist()
    d = load_digits()
    assert sorted(got) == sorted(np.concatenate([d.data, d.target[:,None]], 1).astype(int).tolist())

def test_split_does_not_follow_any_seed():
    a = digits(seed=0)
    set_seed(5)
    b = digits(seed=9)
    for x,y in zip(a,b): assert x.dataset.x.equal(y.dataset.x) and x.dataset.y.equal(y.dataset.y)

def test_idx_files_split(idx_root):
    root,f = idx_root
    dls = f(bs=10, path=root, download=False, n_valid=50, seed=0)
    tr,va,te = (which(dl.dataset) for dl in dls)
    assert (len(tr),len(va),len(te)) == (250,50,40)
    assert sorted(tr+va) == list(range(300)) and te == list(range(300,340))
    for dl,ids in zip(dls,(tr,va,te)):
        assert dl.dataset.y.tolist() == [i%10 for i in ids] # labels stay with their images
    assert which(f(bs=7, path=root, n_valid=50, seed=3).valid_ds) == va
    assert dls.one_batch()[0].shape == (10,1,28,28) and dls.c == 10 and dls.vocab[0] in ('0 - zero','T-shirt/top')

def test_cifar_split(cifar_root):
    dls = cifar10(bs=16, path=cifar_root, known=False, download=False, n_valid=30, seed=0)
    tr,va,te = (which(dl.dataset) for dl in dls)
    assert sorted(tr+va) == list(range(100)) and len(va) == 30 and te == list(range(100,120))
    assert dls.vocab[3] == 'cat' and dls.one_batch()[0].shape == (16,3,32,32)
    # channels stay channels
    assert raw_pixels(dls[2].dataset).numpy().tolist() == images(20, 100, (3,32,32)).tolist()

def test_statistics_are_of_the_training_part_only(cifar_root):
    dls = cifar10(bs=16, path=cifar_root, known=False, n_valid=30, seed=0)
    x = np.concatenate([images(20, 20*i, (3,32,32)) for i in range(5)])[which(dls.train_ds)].astype(float)
    mean,std = dls.train_ds.stats
    assert np.allclose(mean, x.mean((0,2,3)), atol=1e-9) and np.allclose(std, x.std((0,2,3)), atol=1e-9)
    assert dls.train_ds.x.mean((0,2,3)).abs().max() < 1e-5
    short = cifar10(bs=16, path=cifar_root, known=False, n_valid=30, n_train=20, seed=0)
    assert which(short.train_ds) == which(dls.train_ds)[:20]
    for a,b in zip(short.train_ds.stats, dls.train_ds.stats): assert a.equal(b)
    for i in (1,2): assert short[i].dataset.x.equal(dls[i].dataset.x)

def test_n_train_is_stratified_and_checked():
    y = digits(n_train=100, seed=0).train_ds.y.bincount(minlength=10)
    assert y.sum() == 100 and y.min() >= 8 and y.max() <= 12
    for n in (0, 59, 1258):
        with pytest.raises(ValueError, match=f'`n_train` should be from `bs`=60.*got {n}'): digits(n_train=n)

@pytest.mark.parametrize('n', [0,300,-1])
def test_n_valid_is_checked(idx_root, n):
    root,f = idx_root
    with pytest.raises(ValueError, match=f'`n_valid` should be from 1 to 299; got {n}'): f(path=root, n_valid=n)

# ---- files

@pytest.mark.parametrize('f,name', [(mnist,'MNIST'),(fashion_mnist,'FashionMNIST'),(cifar10,'CIFAR10')])
def test_missing_data_says_where_and_what_to_do(f, name, tmp_path):
    with pytest.raises(FileNotFoundError) as e: f(path=tmp_path, download=False)
    for o in (name, str(tmp_path), 'FASTAI_LOTTERY_DATA', '`path=`', 'not allowed'): assert o in str(e.value)
    assert e.value.__suppress_context__ and '\n' not in str(e.value)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('f,cls', [(mnist,tvd.MNIST),(fashion_mnist,tvd.FashionMNIST),(cifar10,tvd.CIFAR10)])
def test_missing_data_without_a_network(f, cls, tmp_path, monkeypatch):
    nowhere = (tmp_path/'nowhere').as_uri()
    monkeypatch.setattr(cls, 'mirrors', [nowhere+'/'], raising=False)
    monkeypatch.setattr(cls, 'url', nowhere, raising=False)
    with pytest.raises(FileNotFoundError, match='Downloading did not help') as e: f(path=tmp_path)
    assert e.value.__suppress_context__ and 'FASTAI_LOTTERY_DATA' in str(e.value) and '\n' not in str(e.value)

@pytest.fixture
def serve(monkeypatch):
    "Serve a folder on this machine; gives its address"
    for o in ('no_proxy','NO_PROXY'): monkeypatch.setenv(o, '127.0.0.1')
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    servers = []
    def go(folder):
        s = ThreadingHTTPServer(('127.0.0.1',0), partial(Quiet, directory=str(folder)))
        servers.append(s)
        threading.Thread(target=s.serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{s.server_port}/'
    yield go
    for s in servers:
        s.shutdown()
        s.server_close()

def test_download_where_files_are_missing(idx_root, tmp_path, monkeypatch, serve):
    root,f = idx_root
    cls = {mnist:tvd.MNIST,fashion_mnist:tvd.FashionMNIST}[f.func]
    mirror = tmp_path/'mirror'
    mirror.mkdir()
    resources = []
    for p in sorted((root/cls.__name__/'raw').iterdir()):
        b = gzip.compress(p.read_bytes())
        (mirror/f'{p.name}.gz').write_bytes(b)
        resources.append((f'{p.name}.gz', hashlib.md5(b).hexdigest()))
    monkeypatch.setattr(cls, 'mirrors', [serve(mirror)])
    monkeypatch.setattr(cls, 'resources', resources)
    (tmp_path/'new').mkdir()    # a folder that is not there may be a wrong name
    got = f(bs=10, path=tmp_path/'new', n_valid=50, seed=0)
    assert got.train_ds.x.equal(f(bs=10, path=root, download=False, n_valid=50, seed=0).train_ds.x)
    monkeypatch.setattr(cls, 'mirrors', []) # whole now: never asks again
    assert len(f(bs=10, path=tmp_path/'new', n_valid=50)) == 3

@pytest.mark.parametrize('part', ['train-images-idx3-ubyte','t10k-labels-idx1-ubyte'])
@pytest.mark.parametrize('keep', [0,.05,.5])
def test_damaged_files_are_one_clear_message(idx_root, part, keep):
    root,f = idx_root
    p = next(root.glob(f'*/raw/{part}'))
    p.write_bytes(p.read_bytes()[:int(keep*p.stat().st_size)])
    with pytest.raises(FileNotFoundError, match='missing or damaged') as e: f(path=root, download=False, n_valid=50)
    assert re.search(r'\(.+\)\. Downloading was not allowed', str(e.value)) and e.value.__suppress_context__ # says why

def test_damaged_cifar_is_never_unpickled(cifar_root):
    p = cifar_root/'cifar-10-batches-py'/'data_batch_2'
    class Bomb:
        def __reduce__(self): return (Path.touch, (cifar_root/'exploded',))
    p.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileNotFoundError, match='missing or damaged'):
        cifar10(path=cifar_root, known=False, download=False, n_valid=30)
    assert not (cifar_root/'exploded').exists()

@pytest.mark.parametrize('a,b,says', [
    ('t10k-labels-idx1-ubyte','train-labels-idx1-ubyte','train has 300 images and 40 labels'),
    ('train-labels-idx1-ubyte','t10k-labels-idx1-ubyte','test has 40 images and 300 labels'),
    ('t10k-images-idx3-ubyte','train-images-idx3-ubyte','train has 40 images and 300 labels')])
def test_a_file_under_anothers_name(idx_root, a, b, says):
    root,f = idx_root
    raw = next(root.glob('*/raw'))
    (raw/b).write_bytes((raw/a).read_bytes())
    with pytest.raises(ValueError, match=says): f(bs=10, path=root, download=False, n_valid=30)

def test_labels_of_no_class(idx_root):
    root,f = idx_root
    idx(next(root.glob('*/raw'))/'train-labels-idx1-ubyte', np.arange(300)%11)
    with pytest.raises(ValueError, match='should be from 0 to 9; they are from 0 to 10'): f(bs=10, path=root, download=False, n_valid=50)

def test_a_known_name_and_another_set(idx_root, cifar_root):
    root,f = idx_root
    for g in (f.func,cifar10):
        with pytest.raises(ValueError, match='should be .*Delete its files in .*known=False'):
            g(bs=10, path=root, download=False, n_valid=50)

@pytest.mark.parametrize('name', ['MNIST','FashionMNIST'])
def test_as_many_as_in_a_known_set_and_others(name):
    x,y = torch.zeros(60000, 28, 28, dtype=torch.uint8),torch.arange(60000)%10
    with pytest.raises(ValueError, match='not what was published|has other images'): check_known(x, y, f'{name} train')

def test_classes_of_a_known_set():
    x,y = torch.zeros(50000, 32, 32, 3, dtype=torch.uint8),torch.arange(50000)%10
    check_known(x, y, 'CIFAR10 train')
    with pytest.raises(ValueError, match='5,000 images of each class'): check_known(x, y*0, 'CIFAR10 train')

def test_the_real_mnist():
    "Where it is at hand"
    try: dls = mnist(download=False)
    except FileNotFoundError: pytest.skip('no MNIST here')
    assert [len(o.dataset) for o in dls]==[55000,5000,10000]

def test_data_root(tmp_path, monkeypatch):
    for o in ('env','arg','home/x'): (tmp_path/o).mkdir(parents=True)
    monkeypatch.setenv('FASTAI_LOTTERY_DATA', str(tmp_path/'env'))
    assert data_root() == tmp_path/'env' and data_root(tmp_path/'arg') == tmp_path/'arg'
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    assert data_root('~/x') == tmp_path/'home'/'x'
    with pytest.raises(FileNotFoundError, match='is not there'): data_root(tmp_path/'wrong')
    monkeypatch.undo()
    monkeypatch.setenv('FASTAI_LOTTERY_DATA', '')
    monkeypatch.delenv('FASTAI_LOTTERY_DATA')
    from fastai.data.external import fastai_path
    assert data_root() == fastai_path('data')

def test_environment_names_the_folder(idx_root, monkeypatch):
    root,f = idx_root
    monkeypatch.setenv('FASTAI_LOTTERY_DATA', str(root))
    assert len(f(bs=10, download=False, n_valid=50).valid_ds) == 50

# ---- the loader

@pytest.mark.parametrize('drop_last', [False,True])
@pytest.mark.parametrize('n,bs', [(50,8),(48,8),(5,8),(50,1)])
def test_batches(n, bs, drop_last):
    dl = tiny(n, bs, shuffle=True, drop_last=drop_last, seed=0)
    bats = list(dl)
    assert len(bats) == len(dl) == (n//bs if drop_last else -(-n//bs))
    seen = [i for x,y in bats for i in x[:,0].int().tolist()]
    assert len(set(seen)) == len(seen) == (n//bs*bs if drop_last else n)
    for x,y in bats: assert (x[:,0]%3).equal(y.float())

def test_unshuffled_order_and_n():
    assert order(tiny()) == list(range(50)) and order(tiny(n=50).new(n=13)) == list(range(13)) 
    assert sorted(order(TensorDL(tiny().dataset, n=13, shuffle=True))) == list(range(13))

def test_own_rng_fixes_the_order():
    a,b = tiny(shuffle=True),tiny(shuffle=True)
    a.rng,b.rng = random.Random(3),random.Random(3)
    assert [order(a) for _ in range(3)] == [order(b) for _ in range(3)]
    state = a.rng.getstate()
    nxt = order(a)
    a.rng.setstate(state)
    assert order(a) == nxt
    assert order(tiny(shuffle=True, seed=1)) != order(tiny(shuffle=True, seed=2))
    dls = DataLoaders(a, tiny())
    dls.rng.seed(3)
    x = order(dls.train)
    dls.rng.seed(3)
    assert order(dls.train) == x

def test_loaders_given_one_rng_do_not_stay_tied():
    def go(n):
        a,b = tiny(shuffle=True),tiny()
        a.rng = b.rng = random.Random(0)
        order(a)
        for _ in range(n): order(b) # validating more often must not change what is trained on next
        return order(a)
    assert go(1) == go(3)

def test_orders_differ_from_epoch_to_epoch():
    dl = tiny(shuffle=True, seed=0)
    assert len({tuple(order(dl)) for _ in range(20)}) == 20

def test_every_order_is_as_likely():
    dl = TensorDL(TensorDS(torch.arange(3.)[:,None]), bs=3, shuffle=True, seed=0)
    from collections import Counter
    n = Counter(tuple(order(dl)) for _ in range(1200))
    assert len(n) == 6 and min(n.values()) > 150 and max(n.values()) < 250

def test_set_seed_before_making_loaders_repeats_them():
    def mk():
        set_seed(4)
        return order(tiny(shuffle=True))
    assert mk() == mk()

def test_global_rng_untouched():
    dls = digits(seed=0)
    aug = TensorDL(TensorDS(torch.rand(20,3,8,8), torch.zeros(20).long()), bs=5, shuffle=True, tfm=flip_crop, seed=0)
    before = rng_state()
    digits(seed=1)
    split_order(100, np.arange(100)%3)
    for dl in [*dls,aug]:
        list(dl), dl.one_batch(), deepcopy(dl)
        dl.new(shuffle=True).one_batch(), dl.new(shuffle=False)
    dls.to('cpu')
    dls.new_empty()
    assert rng_state() == before

def test_iterating_does_not_follow_the_global_rng():
    def go(s):
        dl = tiny(shuffle=True, seed=0)
        set_seed(s)
        return order(dl),order(dl)
    assert go(1) == go(2)

class Seen(TorchDispatchMode):
    "How many operations there were, and bytes of new tensors"
    def __init__(self):
        super().__init__()
        self.ops,self.bytes = 0,0
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        res = f(*args, **(kwargs or {}))
        self.ops += 1
        if torch.is_tensor(res) and not res._is_view(): self.bytes += res.nbytes
        if isinstance(res, (list,tuple)): self.ops += len(res)
        return res

@pytest.mark.parametrize('shuffle', [False,True])
def test_the_first_batch_waits_for_no_other(shuffle):
    def first(n, **kwargs):
        dl = TensorDL(TensorDS(torch.zeros(n,1), torch.zeros(n).long()), bs=8, shuffle=shuffle, seed=0, **kwargs)
        with Seen() as seen: next(iter(dl))
        return seen
    few,many = first(800),first(80_000)
    assert many.ops==few.ops<20 and many.bytes<=9*80_000
    if not shuffle: assert many.bytes==few.bytes
    assert first(80_000, get_idxs=lambda: torch.arange(80_000)).ops<20

def by_hand(seed, n, bs, epochs, shuffle=True, drop_last=False, shuffle_fn=None):
    "Batches as a shuffled range cut at once gives them, and what tfm's generator draws"
    rng = random.Random(seed)
    gen = lambda: torch.Generator().manual_seed(rng.getrandbits(63))
    for _ in range(epochs):
        rng = random.Random(rng.randint(0, 2**32-1))
        idxs = torch.arange(n)
        if shuffle: idxs = shuffle_fn(idxs) if shuffle_fn else idxs[torch.randperm(n, generator=gen())]
        g = gen()
        for i in idxs.split(bs):
            if len(i)==bs or not drop_last: yield i,torch.rand(2, generator=g).tolist()

class Backwards(TensorDL):
    "A loader with an order of its own"
    def shuffle_fn(self, idxs): return idxs.flip(0)

class Twice(TensorDL):
    def get_idxs(self): return [0,1,2,3,4,0,1,2,3,4]

@pytest.mark.parametrize('drop_last', [False,True])
@pytest.mark.parametrize('shuffle', [False,True])
@pytest.mark.parametrize('n,bs', [(50,8),(48,8),(5,8),(50,1),(8,8),(0,3)])
def test_orders_and_draws_are_those_of_a_range_that_is_shuffled(n, bs, shuffle, drop_last):
    drawn = []
    def tfm(x, gen):
        drawn.append(torch.rand(2, generator=gen).tolist())
        return x
    def all_of(cls, **kwargs):
        drawn.clear()
        dl = cls(TensorDS(torch.arange(float(n))[:,None]), bs=bs, shuffle=shuffle, drop_last=drop_last, seed=3, tfm=tfm, **kwargs)
        return [x[:,0].long().tolist() for _ in range(3) for x, in dl],list(drawn)
    def want(**kwargs):
        res = [(i.tolist(),d) for i,d in by_hand(3, n, bs, 3, shuffle, drop_last, **kwargs) if n]
        return [i for i,_ in res],[d for _,d in res]
    assert all_of(TensorDL)==want()
    assert all_of(TensorDL, shuffle_fn=lambda idxs: idxs.roll(1))==want(shuffle_fn=lambda o: o.roll(1))
    assert all_of(Backwards)==want(shuffle_fn=lambda o: o.flip(0))

def test_an_order_that_somebody_gives():
    assert order(Twice(tiny().dataset, bs=4))==[0,1,2,3,4,0,1,2,3,4]
    assert order(TensorDL(tiny().dataset, bs=4, shuffle=True, get_idxs=lambda: torch.tensor([7,7,9])))==[7,7,9]
    dl = tiny(9, 4, shuffle=True, seed=1)
    bats = iter(dl)
    first = next(bats)[0]
    dl.bs,dl.shuffle = 2,False    # for the next pass
    rest = [x for x,_ in bats]
    assert [len(o) for o in rest]==[4,1] and sorted(torch.cat([first,*rest])[:,0].tolist())==list(range(9))
    assert tiny(5).get_idxs().tolist()==list(range(5))

def test_batches_are_copies():
    for shuffle in (False,True):
        dl = tiny(shuffle=shuffle, seed=0)
        for x,y in dl:
            x.zero_()
            y.zero_()
        assert dl.dataset.x[:,0].tolist() == list(range(50)) and dl.dataset.y.tolist() == [i%3 for i in range(50)]

def test_after_batch_and_bad_arguments():
    dl = tiny(after_batch=lambda b: (b[0]+1,b[1]))
    assert order(dl) == list(range(1,51)) and order(dl.new()) == list(range(1,51))
    with pytest.raises(TypeError, match="after_item"): tiny(after_item=noop)
    with pytest.raises(TypeError, match="shufle"): tiny(shufle=True)
    for bs in (0,-1,None,2.): 
        with pytest.raises(ValueError, match='`bs` should be a whole number'): tiny(bs=bs)
    with pytest.raises(ValueError, match='as many items; got 3 and 2'): TensorDS(torch.ones(3), torch.ones(2))

def test_pickle_and_deepcopy_go_on_alike():
    dl = tiny(shuffle=True, seed=0, tfm=None)
    order(dl)
    a,b = pickle.loads(pickle.dumps(dl)),deepcopy(dl)
    b.dataset.x.add_(0)
    want = order(dl),order(dl)
    assert (order(a),order(a)) == want == (order(b),order(b))
    b.dataset.x.zero_()
    assert dl.dataset.x.sum() > 0

def test_new_draws_from_a_copy():
    dl = tiny(shuffle=True, seed=5)
    other = dl.new()
    assert order(other) == order(dl)
    state = dl.rng.getstate()
    order(dl.new()), dl.new(bs=3)
    assert dl.rng.getstate() == state
    small = dl.new(dl.dataset.new(torch.ones(4,1), torch.zeros(4).long()))
    assert len(small.dataset) == 4 and small.shuffle and small.vocab == ['a','b','c']

def test_loss_is_inferred():
    assert isinstance(Learner(digits(), mlp(64)).loss_func, CrossEntropyLossFlat)
    reg = TensorDL(TensorDS(torch.rand(8,2), torch.rand(8,1)))
    with pytest.raises(AssertionError, match='Could not infer'): Learner(DataLoaders(reg,reg), nn.Linear(2,1))
    quiet(Learner(DataLoaders(reg,reg), nn.Linear(2,1), loss_func=MSELossFlat()))

@pytest.mark.cuda
def test_same_batches_on_a_gpu():
    a,b = digits(seed=0, device='cpu'),digits(seed=0, device='cuda')
    assert b.train.device.type == 'cuda' and b.one_batch()[0].is_cuda
    a.one_batch()
    for (x,y),(u,v) in zip(a.train,b.train): assert x.equal(u.cpu()) and y.equal(v.cpu())
    assert b.to('cpu').one_batch()[0].device.type == 'cpu'

def test_to_moves_the_tensors():
    dls = digits(seed=0, device='cpu')
    dls.to('meta')
    assert dls.device == 'meta'
    assert all(dl.device.type == dl.dataset.x.device.type == dl.dataset.y.device.type == 'meta' for dl in dls)

# ---- augmentation

def test_flip_crop_picks_flipped_crops():
    x = torch.arange(1.,2*3*25+1).view(2,3,5,5).repeat(100,1,1,1)
    out = flip_crop(x, torch.Generator().manual_seed(0), pad=2)
    pad,seen = F.pad(x, [2]*4),set()
    for n in range(len(x)): # each is one of the 25 crops, flipped or not
        hits = [(i,j,f) for i in range(5) for j in range(5) for f in (0,1)
                if out[n].equal(pad[n,:,i:i+5,j:j+5].flip(-1) if f else pad[n,:,i:i+5,j:j+5])]
        assert len(hits) == 1
        seen.add(hits[0])
    assert len(seen) > 40 # of 50: samples are drawn one by one
    again,other = (flip_crop(x, torch.Generator().manual_seed(i), pad=2) for i in (0,1))
    assert out.equal(again) and not out.equal(other)

def test_augmentation_is_for_training_only(cifar_root):
    plain,aug = (cifar10(bs=10, path=cifar_root, known=False, n_valid=30, augment=a, seed=0) for a in (False,True))
    assert not plain.one_batch()[0].equal(aug.one_batch()[0])
    for i in (1,2):
        for (x,_),(u,_) in zip(plain[i],aug[i]): assert x.equal(u)
    learn = Learner(aug, mlp(3072))
    assert learn.get_preds(0, with_input=True)[0].equal(aug.train_ds.x.cpu())

def test_augmentation_repeats_with_the_rng():
    ds = TensorDS(torch.rand(20,1,8,8), torch.zeros(20).long())
    a,b = (list(TensorDL(ds, bs=5, shuffle=True, tfm=flip_crop, seed=2)) for _ in range(2))
    assert all(x.equal(u) for (x,_),(u,_) in zip(a,b))
    assert not a[0][0].equal(a[1][0])

# ---- a Learner with them

def test_fit_validate_and_predictions():
    set_seed(0)
    dls = digits(seed=0)
    learn = Learner(dls, mlp(64), metrics=accuracy, lr=3e-3)
    quiet(learn, 6)
    assert learn.train_iter == 120
    for i in (0,1,2):
        ds = dls[i].dataset
        preds,targs,losses = learn.get_preds(i, with_loss=True)
        assert targs.equal(ds.y.cpu()) and len(losses) == len(ds)
        with torch.no_grad(): assert torch.allclose(preds, learn.model.eval()(ds.x).softmax(1).cpu(), atol=1e-5)
        acc = (preds.argmax(1)==targs).float().mean().item()
        if i: assert learn.validate(i)[1] == pytest.approx(acc, abs=1e-5)
        assert acc > .85
    # shuffled predictions come back in the order of the data set
    shuf,targs = learn.get_preds(dl=dls.valid.new(shuffle=True))
    assert targs.equal(dls.valid_ds.y.cpu()) and torch.allclose(shuf, learn.get_preds(1)[0], atol=1e-6)

def test_lr_find_and_one_cycle():
    learn = Learner(digits(seed=0), mlp(64))
    with learn.no_logging(), learn.no_mbar():
        learn.lr_find(num_it=25, show_plot=False)
        learn.fit_one_cycle(1, 1e-3)

def test_same_seed_same_bits():
    def go():
        set_seed(0)
        model = mlp(64)
        set_seed(1)
        learn = Learner(digits(seed=3), model)
        torch.rand(7)
        random.random()
        quiet(learn, 2)
        return model[1].weight
    assert go().equal(go())

def test_export_and_load(tmp_path):
    dls = digits(seed=0)
    learn = Learner(dls, mlp(64), path=tmp_path)
    quiet(learn)
    learn.export()
    assert (tmp_path/'export.pkl').stat().st_size < 60_000 # 1,797 digits are 460 kB
    again = load_learner(tmp_path/'export.pkl')
    assert [len(dl.dataset) for dl in again.dls] == [0,0,0] and again.dls.vocab == dls.vocab
    x = dls[2].dataset.x.cpu()
    assert torch.allclose(again.get_preds(dl=again.dls.test_dl(x))[0], learn.get_preds(2)[0], atol=1e-6)
    dl = again.dls.test_dl(list(x[:5].numpy()))
    assert torch.allclose(again.get_preds(dl=dl)[0], learn.get_preds(2)[0][:5], atol=1e-6)
    name,i,probs = again.predict(x[0])
    assert name == dls.vocab[int(i)] and int(i) == int(probs.argmax())

def test_deepcopy_of_a_learner():
    learn = Learner(digits(seed=0), mlp(64))
    other = deepcopy(learn)
    quiet(learn)
    quiet(other)
    assert learn.model[1].weight.equal(other.model[1].weight)
