"ONNX files say what their nets say, the Learner stays as it was, and the report measures what it says it does"
import json,math,subprocess,sys,warnings
from dataclasses import replace
from pathlib import Path
import pytest
from nets import *
from test_house import rooms,root
from fastai.data.transforms import Normalize
from fastai.vision.core import TensorImage
from fastai_lottery import convert,report
from fastai_lottery.convert import Graph,copied,difference,find_graph,inputs_of,needed,rows,train_rows
from fastai_lottery.deploy import sparse_copy,to_calibrate
from fastai_lottery.report import decisions,dense_of,pruned_to,two_of_four,warn_of,Way
from fastai_lottery.speed import plot_speed

pytestmark = pytest.mark.filterwarnings('ignore')
extra = pytest.mark.extra
hidden = ['onnx','onnxscript','onnxruntime']

# --- without the extra

@pytest.mark.parametrize('gone', hidden)
@pytest.mark.parametrize('verb', ['to_onnx','deploy_report'])
def test_a_verb_says_which_extra_it_needs(verb, gone, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, gone, None)
    with pytest.raises(ImportError, match=r"pip install 'fastai_lottery\[deploy\]'"):
        getattr(learner(), verb)(*[tmp_path/'a.onnx'][:verb=='to_onnx'])
    assert not list(tmp_path.iterdir())

def test_the_package_is_imported_without_the_extra():
    code = f'''
import sys
for o in {hidden}: sys.modules[o] = None
import fastai_lottery.all
print([o for o in sys.modules if o.split('.')[0] in {hidden} and sys.modules[o]])'''
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=root)
    assert out.stdout.strip()=='[]', out.stderr
    code = f'import sys,fastai_lottery.all; print([o for o in {hidden} if o in sys.modules])'
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=root)
    assert out.stdout.strip()=='[]', out.stderr

# --- pieces that need torch alone

def test_difference():
    a = tensor([1.,-4.,float('nan')])
    assert difference([a], [a.clone()])==0 and difference([a], [a+tensor([1.,0,0])])==.25
    assert difference([a], [a[:2]])==math.inf and difference([a], [])==math.inf
    assert difference([a], [tensor([1.,-4.,0.])])==math.inf, 'a number where there is none'
    assert difference([tensor([0.,0.])], [tensor([0.,3.])])==3 and difference([tensor([True])], [tensor([False])])==1

convs = dict(plain=dict(), stride=dict(stride=2), padding=dict(padding=2), dilation=dict(dilation=2),
             bias=dict(bias=False), uneven=dict(kernel_size=(3,1), stride=(1,2), padding=(1,0)))
@pytest.mark.parametrize('name', convs)
def test_a_sparse_convolution_is_the_same(name):
    m = nn.Sequential(nn.Conv2d(3, 5, **{'kernel_size':3, **convs[name]}), nn.ReLU(), nn.Flatten(2)).eval()
    x = torch.randn(2,3,9,9)
    m.append(nn.Linear(m(x).shape[-1], 4))
    g = pruned_to(Graph(m, [[x]], ['x'], ['y'], [{0}], [None]), .7)
    with torch.no_grad(): assert difference([g.net(x)], [sparse_copy(g.net)(x)])<1e-5
    ws = named_weights(g.net, prunable(g.net)).values()
    assert sum(int((w==0).sum()) for w in ws)==round(.7*sum(w.numel() for w in ws))

def test_what_torch_has_no_sparse_weights_for():
    with pytest.raises(ValueError, match='nn.Linear or an nn.Conv2d'): sparse_copy(nn.Conv2d(4,4,3,groups=2))

def test_two_of_four_are_zeros():
    net = nn.Sequential(nn.Linear(64,32), nn.ReLU(), nn.Linear(32,4))
    g = Graph(net, [[torch.randn(3,64)]], ['x'], ['y'], [{0}], [None])
    w = two_of_four(g).net[0].weight.reshape(32,16,4)
    assert ((w!=0).sum(-1)==2).all() and (g.net[0].weight!=0).all(), 'the net itself is another one'
    with pytest.raises(ValueError, match='multiple of 32'): two_of_four(replace(g, net=nn.Linear(8,4)))

def test_decisions():
    x = tensor([[.2,1.],[3.,1.]])
    for loss in (CrossEntropyLossFlat(), nn.CrossEntropyLoss(), F.cross_entropy):
        assert decisions(loss, x).tolist()==[1,0]
    for loss in (nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, BCEWithLogitsLossFlat()):
        assert decisions(loss, x-.5).tolist()==[[False,True],[True,True]]
    for loss in (MSELossFlat(), nn.MSELoss()): assert decisions(loss, x) is None
    assert decisions(CrossEntropyLossFlat(), (x,x)) is None

class Twice(nn.Module):
    "A computed tensor that `deepcopy` refuses"
    def __init__(self):
        super().__init__()
        self.l = nn.utils.weight_norm(nn.Linear(8,4))
    def forward(self, x): return self.l(x)

def test_a_copy_of_what_cannot_be_copied():
    m = Twice()
    m(torch.randn(2,8))
    with pytest.raises(RuntimeError): deepcopy(m)
    x = torch.randn(3,8)
    assert torch.equal(copied(m)(x), m.eval()(x))

# --- data for calibration

class Shift(Transform):
    "As an augmentation: of training alone"
    split_idx,order = 0,50
    def encodes(self, x:TensorImage): return x+100

class Norm(Normalize): "fastai's, by another name"

def images(n=40, size=8, bs=8, tfms=(), **kwargs):
    "Loaders of fastai over random images with transforms of batches"
    g = torch.Generator().manual_seed(1)
    xs,ys = torch.rand(n, 3, size, size, generator=g),torch.randint(0, 2, (n,), generator=g)
    xs[:,0] *= .4+.6*ys[:,None,None]    # something to learn
    tfms_of = [lambda i: TensorImage(xs[i])],[lambda i: TensorCategory(ys[i])]
    dsets = Datasets(range(n), list(tfms_of), splits=[range(n-16), range(n-16,n)])
    return dsets.dataloaders(bs=bs, after_batch=list(tfms), num_workers=0, device='cpu', **kwargs)

def image_net():
    return nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8,2))

def test_inputs_are_not_augmented():
    learn = learner(image_net, images(tfms=[Shift()]))
    assert all(float(x.max())>99 for x,_ in learn.dls.train)
    before = (rng_states(), learn.dls.train.rng.getstate(), learn.dls.train_ds.split_idx)
    for f in (lambda: inputs_of(learn, train_rows(learn, 20)), lambda: to_calibrate(learn, 20, [None])):
        xs = torch.cat([b[0] for b in f()])
        assert float(xs.max())<=1 and len(xs)>=20
    assert (rng_states(), learn.dls.train.rng.getstate(), learn.dls.train_ds.split_idx)==before
    assert all(float(x.max())>99 for x,_ in learn.dls.train)
    def fails(): raise KeyError
    with pytest.raises(KeyError), convert.as_validated(learn.dls.train_ds): fails()
    assert learn.dls.train_ds.split_idx==0 and len(torch.cat([b[0] for b in to_calibrate(learn, 19, [None])]))==19

# --- with the extra: every Learner

class Two(nn.Module):
    "Two inputs, of which one is of numbers, and two outputs of several shapes"
    def __init__(self):
        super().__init__()
        self.e,self.l,self.h = nn.Embedding(5,3),nn.Linear(11,6),nn.Linear(6,2)
    def forward(self, cats, x):
        o = self.l(torch.cat([x, self.e(cats).mean(1)], 1)).relu()
        return self.h(o), o.sum(1)

class Words(nn.Module):
    "A dict in, a dict out, and lengths that vary"
    def __init__(self):
        super().__init__()
        self.e,self.h = nn.Embedding(20,6),nn.Linear(6,3)
    def forward(self, batch):
        ids,mask = batch['ids'],batch['mask']
        return dict(logits=self.h((self.e(ids)*mask[...,None]).mean(1)), n=mask.sum(1))

def two_dls():
    g = torch.Generator().manual_seed(0)
    ds = [(torch.randint(0,5,(4,),generator=g), torch.randn(8,generator=g), torch.tensor(i%2)) for i in range(60)]
    return DataLoaders(DataLoader(ds[:40], bs=8, shuffle=True), DataLoader(ds[40:], bs=10), device='cpu')

class ListDL(list):
    "Batches as they are"
    bs = 4
def words_dls():
    def b(n): return dict(ids=torch.randint(0,20,(4,n)), mask=torch.ones(4,n)),torch.randint(0,3,(4,))
    torch.manual_seed(0)
    return DataLoaders(ListDL([b(3), b(7), b(5)]), ListDL([b(4), b(6)]), device='cpu')

def first_loss(o, *ys): return F.cross_entropy(o[0] if isinstance(o, tuple) else o['logits'], ys[-1])
def tabular():
    from fastai.tabular.all import TabularDataLoaders,tabular_learner,Categorify,FillMissing,Normalize,CategoryBlock
    r = np.random.RandomState(0)
    df = pd.DataFrame(dict(a=r.choice(list('xyz'),60), b=r.randn(60), c=r.randn(60)))
    df['y'] = np.where(df.b>0, 'yes', 'no')
    cols = dict(cat_names=['a'], cont_names=['b','c'], y_names='y', y_block=CategoryBlock())
    dls = TabularDataLoaders.from_df(df, **cols, bs=16, device='cpu', procs=[Categorify,FillMissing,Normalize])
    return quiet(tabular_learner(dls, layers=[20,10], metrics=accuracy))

def vision():
    from fastai.vision.all import vision_learner,resnet18
    how = dict(n_out=2, pretrained=False, normalize=False, loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    return quiet(vision_learner(images(size=32), resnet18, **how))

def quiet(learn):
    learn.logger = noop
    return learn.remove_cbs(L(o for o in learn.cbs if isinstance(o, ProgressCallback)))

def masked(learn):
    learn.prune(.5)
    return learn
def several(shape=(8,), n=3):
    g = torch.Generator().manual_seed(2)
    return dls_of(torch.randn(64, *shape, generator=g), torch.randint(0, 2, (64,n), generator=g).float())

def doubles():
    g = torch.Generator().manual_seed(3)
    return dls_of(torch.randn(64, 8, generator=g, dtype=torch.double), torch.randint(0, 4, (64,), generator=g))

makers = dict(
    conv=lambda: learner(image_net, images()), masks=lambda: masked(learner(image_net, images())),
    fp16=lambda: learner(image_net, images()).to_fp16(), vision=vision, tabular=tabular,
    two=lambda: learner(Two, two_dls(), loss=first_loss, metrics=[]),
    words=lambda: learner(Words, words_dls(), loss=first_loss, metrics=[], cbs=None),
    regression=lambda: learner(nn.Linear(8,3), several(), loss=MSELossFlat(), metrics=rmse),
    several=lambda: learner(nn.Linear(8,3), several(), loss=BCEWithLogitsLossFlat(), metrics=accuracy_multi),
    double=lambda: learner(mlp().double(), doubles()), no_batch=lambda: learner(drop_bn, data()),
    wrapped=lambda: learner(nn.DataParallel(mlp()), data()))
makers.update({n:(lambda n=n: from_zoo(n)) for n in zoo if n!='awd_lstm'})

def everything(learn):
    "What must not change"
    dls = [getattr(o, 'rng', None) for o in learn.dls.loaders]
    ps = [(id(p),p.requires_grad) for p in learn.model.parameters()]
    return (bits(learn.model), [m.training for m in learn.model.modules()], ps, rng_states(),
            [o and o.getstate() for o in dls],
            list(learn.cbs), list(learn.metrics), vars(learn).get('training'), id(learn.model), torch.get_num_threads())

def served(file, xs):
    "Outputs by onnxruntime alone, for tensors in the order of the file's inputs"
    import onnxruntime
    s = onnxruntime.InferenceSession(str(file))
    feed = {i.name:x.contiguous().numpy() for i,x in zip(s.get_inputs(), xs)}
    return list(map(torch.from_numpy, s.run(None, feed)))

def some(learn, k):
    "`k` validation rows, and what the net says to them"
    xb = [learn.dls.valid.one_batch() if hasattr(learn.dls.valid, 'one_batch') else learn.dls.valid[0]][0]
    xb = xb[:getattr(learn.dls, 'n_inp', len(xb)-1)]
    def cut(t): return t.as_subclass(torch.Tensor)[:k]
    args = convert.tree_map(lambda t: cut(t) if torch.is_tensor(t) else t, tuple(xb))
    m = deepcopy(unwrap(learn.model)).eval()
    ps = next(m.parameters()).dtype
    with torch.no_grad(): out = m(*convert.tree_map(lambda t: t.to(ps) if t.is_floating_point() else t, args))
    return [convert.plain(t) for t in convert.tensors(args)], [convert.plain(t) for t in convert.tensors(out)]

@extra
@pytest.mark.parametrize('name', makers)
def test_a_file_says_what_the_net_says(name, tmp_path):
    learn = makers[name]()
    learn.model.train()
    before = everything(learn)
    file = learn.to_onnx(tmp_path/'net')
    assert everything(learn)==before
    assert [p.name for p in tmp_path.iterdir()]==['net.onnx'] and file==tmp_path/'net.onnx'
    for k in (1,3,4):
        xs,want = some(learn, k)
        got = served(file, xs)
        assert difference(want, got)<1e-5, k
    if name=='masks': assert leaks(learn)==0 and learn.lottery.masks.density==.5

@extra
@pytest.mark.parametrize('how', ['static','dynamic'])
@pytest.mark.parametrize('name', [o for o in makers if o not in ('vision',)])
def test_int8_is_near_and_changes_nothing(name, how, tmp_path):
    learn = makers[name]()
    learn.model.train()
    before = everything(learn)
    if name=='words' and how=='static': learn.dls.train.bs = 4
    file = learn.to_onnx(tmp_path/'net.onnx', quantize=how)
    assert everything(learn)==before
    xs,want = some(learn, 4)
    got = served(file, xs)
    assert all(a.shape==b.shape for a,b in zip(want, got)) and difference(want, got)<.3    # of few rows

@extra
def test_the_graph_is_int8(tmp_path):
    import onnx
    def ops(f): return ' '.join(o.op_type for o in onnx.load(f).graph.node)
    learn = learner(image_net, images())
    assert 'QuantizeLinear' in ops(learn.to_onnx(tmp_path/'s', quantize='static'))
    dyn = ops(learn.to_onnx(tmp_path/'d', quantize='dynamic'))
    assert 'MatMulInteger' in dyn and 'ConvInteger' not in dyn, 'convolutions are slower so'

@extra
def test_pruned_weights_are_zeros_of_the_file(tmp_path):
    import onnx
    from onnx import numpy_helper
    learn = masked(learner())
    ws = [numpy_helper.to_array(o) for o in onnx.load(learn.to_onnx(tmp_path/'net')).graph.initializer]
    assert sum((w==0).sum() for w in ws if w.ndim==2)==learn.lottery.masks.numel-learn.lottery.masks.n_kept

# --- what stands in a file

def told(file):
    import onnxruntime
    s = onnxruntime.InferenceSession(str(file))
    return s,{k:json.loads(v) for k,v in s.get_modelmeta().custom_metadata_map.items()}

@extra
def test_a_file_says_of_itself(tmp_path):
    learn = tabular()
    s,d = told(learn.to_onnx(tmp_path/'net', act=True, quantize='static'))
    assert d['vocab']==['no','yes'] and d['activation']=='activation' and d['quantize']=='static'
    assert d['cat_names']==['a'] and d['cont_names']==['b','c'] and d['classes']=={'a':['#na#','x','y','z']}
    assert [(i.name,i.shape[0]) for i in s.get_inputs()]==[('x_cat','batch'),('x_cont','batch')]
    raw = (tmp_path/'net.onnx').read_bytes()
    assert str(root).encode() not in raw and b'site-packages' not in raw, 'a path of this machine'

@extra
def test_the_lossfunctions_activation(tmp_path):
    learn = learner(image_net, images())
    want = learn.get_preds()[0]
    xs = torch.cat([x for x,_ in learn.dls.valid]).as_subclass(torch.Tensor)
    assert difference([want], served(learn.to_onnx(tmp_path/'a', act=True), [xs]))<1e-5
    assert difference([want], served(learn.to_onnx(tmp_path/'a', act=partial(torch.softmax, dim=-1)), [xs]))<1e-5
    learn.loss_func = F.cross_entropy
    with pytest.raises(ValueError, match="'cross_entropy' has none.*act=partial"): learn.to_onnx(tmp_path/'a', act=True)
    with pytest.raises(ValueError, match='`act` should be True, False or a function'):
        learn.to_onnx(tmp_path/'a', act='softmax')

@extra
@pytest.mark.parametrize('how', [None,'static'])
def test_normalisation_in_the_graph(how, tmp_path):
    norm = Normalize.from_stats([.5,.4,.3], [.2,.3,.1], cuda=False)
    learn = learner(image_net, images(tfms=[Shift(),norm]))
    pixels = torch.stack([x for x,_ in learn.dls.valid_ds]).as_subclass(torch.Tensor)
    want,near = learn.get_preds()[0],1e-5 if how is None else .1
    xs = torch.cat([b[0] for b in find_graph(learn, True, True).batches])
    assert -1e-6<float(xs.min()) and float(xs.max())<1+1e-6, 'what it is traced and calibrated with are pixels'
    file = learn.to_onnx(tmp_path/'n', act=True, normalize=True, quantize=how)
    assert difference([want], served(file, [pixels]))<near
    said = dict(mean=pytest.approx([.5,.4,.3]), std=pytest.approx([.2,.3,.1]), in_graph=True)
    assert told(file)[1]['normalize']==said
    assert not told(learn.to_onnx(tmp_path/'o'))[1]['normalize']['in_graph']
    with pytest.raises(ValueError, match='needs fastai.s `Normalize` as the last batch transform.*they have Shift'):
        learner(image_net, images(tfms=[Shift()])).to_onnx(tmp_path/'x', normalize=True)

@extra
def test_above_the_limit_there_are_two_files(tmp_path, monkeypatch):
    learn = learner(mlp(512))
    monkeypatch.setattr(convert, 'most_bytes', 1000)
    monkeypatch.setattr('fastai_lottery.deploy.most_bytes', 1000)
    file = learn.to_onnx(tmp_path/'big')
    assert sorted(p.name for p in tmp_path.iterdir())==['big.onnx','big.onnx.data']
    xs,want = some(learn, 3)
    assert difference(want, served(file, xs))<1e-5

# --- what cannot be written

class Branch(nn.Module):
    "Python that looks at the data, which a trace writes down as it went once"
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8,4)
    def forward(self, x): return self.l(x) if len(x)<3 or float(x.sum())>1e9 else self.l(x)*2

class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8,4)
    def forward(self, x): return F.dropout(self.l(x), .5, True)

@extra
@pytest.mark.parametrize('net', [Branch, Random])
def test_a_file_that_differs_is_not_kept(net, tmp_path):
    (tmp_path/'net.onnx').write_text('an older one')
    with pytest.raises(ValueError, match=r'differs from the net by [\d.]+ of the largest output with \d+ row'):
        learner(net).to_onnx(tmp_path/'net')
    assert [(p.name,p.read_text()) for p in tmp_path.iterdir()]==[('net.onnx','an older one')]

@extra
def test_awd_lstm_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match='cannot be written as ONNX'): from_zoo('awd_lstm').to_onnx(tmp_path/'net')
    from fastai.text.all import TextDataLoaders,text_classifier_learner
    r = np.random.RandomState(0)
    texts = [' '.join(r.choice('good bad film the was'.split(), r.randint(4,30))) for _ in range(40)]
    df = pd.DataFrame(dict(text=texts, label=['p','n']*20))
    how = dict(bs=8, num_workers=0, n_workers=0, device='cpu')
    dls = TextDataLoaders.from_df(df, text_col='text', label_col='label', **how)
    capsys.readouterr()
    learn = text_classifier_learner(dls, AWD_LSTM, pretrained=False, config=small_awd())
    with pytest.raises(ValueError, match='cannot be written as ONNX.*must not depend on the values of its inputs'):
        learn.to_onnx(tmp_path/'net')
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out, 'what exporters print is theirs'

def small_awd():
    from fastai.text.all import awd_lstm_clas_config
    return {**awd_lstm_clas_config, 'emb_sz':8, 'n_hid':10, 'n_layers':2}

@extra
def test_wrong_requests(tmp_path):
    learn = learner(image_net, images())
    def says(match, **kw):
        with pytest.raises(ValueError, match=match): learn.to_onnx(tmp_path/'net', **kw)
    says("`quantize` should be None.*got 'int8'", quantize='int8')
    says('`calibrate` should be', quantize='static', calibrate=0)
    with pytest.raises(ValueError, match='`path` should name'): learn.to_onnx('')
    learn.model = nn.Sequential(nn.Conv2d(3,2,3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    says("nothing for quantize='dynamic'", quantize='dynamic')
    learn.dls = DataLoaders(learn.dls.train.new([]), learn.dls.valid)
    says('of which this Learner has none', quantize='static')
    assert learn.to_onnx(tmp_path/'net').exists(), 'the validation set shows the inputs too'
    assert learn.to_onnx(tmp_path/'net', quantize='static', calibrate=learn.dls.valid).exists()
    learn.dls = DataLoaders(*[o.new([]) for o in learn.dls.loaders])
    says('this Learner has no data')

# --- the report

@pytest.fixture(scope='module')
def played():
    learn = learner(image_net, images(n=80, bs=16))
    learn.fit_lottery(6, rounds=1, amount=.5, seed=0, keep='all')
    assert learn.evaluate()['accuracy']>.8
    return learn

quick = dict(batches=(1,4), repeats=3, threads=1)
ways = ['eager','channels_last','ONNX','ONNX int8, static','ONNX int8, dynamic']

def in_order(df, k):
    mid,lo,hi = (df[f'ms_{k}{o}'] for o in ('','_lo','_hi'))
    return ((0<lo) & (lo<=mid) & (mid<=hi)).all()

@extra
def test_a_report(played):
    learn = played
    before = everything(learn)
    df = learn.deploy_report(**quick)
    assert everything(learn)==before
    zeros = [('90 % zeros',o) for o in ('eager','ONNX','torch sparse')]
    assert list(df.index)==[(n,w) for n in ('net','dense') for w in ways]+zeros+[o for o in df.index if 'CUDA' in o[1]]
    n = sum(p.numel() for p in learn.model.parameters())
    run = df[df.ms_1.notna()]
    assert (run.params==n).all() and (run.madds==8*27*36+16).all() and (df.threads==1).all()
    alive = sum(int((p!=0).sum()) for p in learn.model.parameters())
    assert df.loc[('net','ONNX'),'nonzero']==alive<df.loc[('dense','ONNX'),'nonzero']
    assert all(in_order(run, k) for k in (1,4))
    loss,acc = learn.validate()
    assert df.loc[('net','ONNX'),['valid_loss','accuracy']].tolist()==pytest.approx([loss,acc], rel=1e-4)
    first,both = learn.lottery.rounds[0],['valid_loss','accuracy']
    assert df.loc[('dense','ONNX'),both].tolist()==pytest.approx([first[o] for o in both], rel=1e-4)
    assert (df.loc[['net','dense']].difference.xs('ONNX', level='way')<1e-5).all()
    assert 0<df.loc[('net',ways[3]),'difference']<.2 and df.loc['90 % zeros'].accuracy.isna().all()
    assert learn.lottery.masks.density==.5 and leaks(learn)==0
    plot_speed({1:df})

@extra
def test_rows_that_a_machine_or_a_net_lacks_say_so():
    df = learner(mlp, data()).deploy_report(**quick)
    assert 'no input has four axes' in df.loc[('net','channels_last'),'note']
    if not torch.cuda.is_available(): assert 'no NVIDIA GPU' in df.loc[('2:4 zeros','CUDA, float16'),'note']
    assert 'dense' not in df.index.get_level_values('net'), 'there is none to compare with'
    df = from_zoo('awd_lstm').deploy_report(**quick)
    assert df.loc[('net','eager'),'ms_1']>0 and 'cannot be written' in df.loc[('net','ONNX'),'note']
    assert 'no float32 file' in df.loc[('net',ways[3]),'note']
    assert df.loc[('net','ONNX'),['ms_1','accuracy']].isna().all()
    lacks = df[df.ms_1.isna()]
    assert len(lacks) and (lacks.note!='').all()

@extra
@pytest.mark.parametrize('name', ['tabular','two','regression','several','fp16','vision'])
def test_a_report_of_every_kind(name):
    learn = makers[name]()
    before = everything(learn)
    df = learn.deploy_report(**quick)
    assert everything(learn)==before
    assert df.loc[('net','ONNX'),'difference']<1e-4 and df.loc[('net','ONNX'),'ms_4']>0
    want = learn.evaluate()
    assert {k:df.loc[('net','ONNX'),k] for k in want}==pytest.approx(want, rel=1e-3)
    agrees = df.loc[('net','ONNX'),'agreement']
    assert math.isnan(agrees) if name in ('two','regression') else agrees==1

@extra
def test_the_dense_net(played):
    learn = learner(image_net, images(n=80, bs=16))
    other = learner(image_net, images(), seed=5)
    for o in (other, other.model):
        df = learn.deploy_report(dense=o, **quick)
        learn.model,was = other.model,learn.model
        assert df.loc[('dense','ONNX'),'valid_loss']==pytest.approx(learn.evaluate()['valid_loss'], rel=1e-4)
        learn.model = was
    with pytest.raises(TypeError, match='`dense` should be a Learner or a model'): learn.deploy_report(dense=3, **quick)

def test_a_dense_round_whose_weights_are_gone():
    learn = learner(image_net, images())
    assert dense_of(learn, None)[0] is None
    learn.fit_lottery(1, rounds=3, amount=.5, seed=0, tol=None)
    learn.lottery.trained.pop(0, None)
    m,trained,note = dense_of(learn, None)
    assert not trained and 'are gone' in note and all((p!=0).any() for p in m.parameters() if p.ndim>1)
    assert sum(int((p==0).sum()) for p in m.parameters() if p.ndim>1)==0
    learn.model = nn.Linear(3,2)    # as after shapes have changed
    m,trained,note = dense_of(learn, None)
    assert m is None and 'do not fit the net' in note and 'MB' in note

def test_int8_that_does_not_pay():
    def way(name, ms, acc, net='net'):
        w = Way(net, name, run=noop, times={1:ms}, seen=dict(ms_1=float(np.median(ms)), accuracy=acc))
        return w
    def notes(*ws):
        with warnings.catch_warnings(record=True) as got:
            warnings.simplefilter('always')
            by = dict(monitor='accuracy', better='higher is better')
            warn_of([way('eager',[3.,3,3,3],.9), way('ONNX',[1.,1,1,1],.9), *ws], by)
        return [str(o.message) for o in got]
    assert not notes(way('ONNX int8, static',[.5,.6,.5,.5],.895))
    assert not notes(way('ONNX int8, static',[.9,.9,1.2,1.2],.9)), 'slower in half of the repeats is the machine'
    slow = way('ONNX int8, dynamic',[2.,2,2,2],.9)
    assert 'takes 2 ms for 1 row, float32 1' in notes(slow)[0] and 'takes 2 ms' in slow.note
    assert 'its accuracy is 0.88, that of the eager net 0.9' in notes(way('ONNX int8, static',[.5]*4,.88))[0]
    assert not notes(way('ONNX int8, static',[.5]*4,.95)), 'better is no loss'

@extra
def test_a_bad_calibration_is_told(played):
    "Where int8 has seen numbers a thousand times as large, all of an image is one step"
    bright = [(1000*torch.rand(8,3,8,8), torch.zeros(8).long())]
    learn = played
    with pytest.warns(UserWarning, match='ONNX int8, static of this net does not pay.*accuracy'):
        df = learn.deploy_report(calibrate=bright, **quick)
    assert 'accuracy' in df.loc[('net',ways[3]),'note']

@pytest.mark.parametrize('kw', [dict(batches=(0,)), dict(repeats=0), dict(threads=0), dict(sparsity=1.5)])
def test_wrong_settings_of_a_report(kw, monkeypatch):
    monkeypatch.setattr(report, 'needed', lambda *o: None)
    with pytest.raises(ValueError, match=f'`{next(iter(kw))}` should be'): learner().deploy_report(**kw)

@extra
@pytest.mark.slow
@pytest.mark.parametrize('path', [*[rooms[o] for o in 'coupled structured shrink convert deploy report'.split()],
                                  'nbs/tutorials/11_production.ipynb', 'nbs/tutorials/12_how_small.ipynb'])
def test_lessons_that_need_the_extra_run(path):
    "The cells that `nbdev-test` leaves out"
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(root/path, 4)
    NotebookClient(nb, timeout=600, resources={'metadata':{'path':str((root/path).parent)}}).execute()

@pytest.mark.cuda
@extra
def test_two_of_four_on_a_gpu():
    net = nn.Sequential(nn.Linear(64,64), nn.ReLU(), nn.Linear(64,32))
    learn = learner(net, data(shape=(64,), classes=32), cbs=None)
    df = learn.deploy_report(**quick)
    assert df.loc[('2:4 zeros','CUDA, float16'),'ms_1']>0 and df.loc[('net','CUDA, float16'),'ms_1']>0
