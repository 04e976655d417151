"Small nets of many kinds, whose units are looked for and taken out"
import torch,torch.nn.functional as F
from torch import nn

class Fn(nn.Module):
    "A function as a layer"
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, *xs): return self.f(*xs)

def conv(i, o, k=3, **kw): return nn.Conv2d(i, o, k, padding=k//2, **kw)
def around(mid, pad=True, n=16, after=None):
    "`mid` between two convolutions"
    return nn.Sequential(conv(3, n), mid, nn.Conv2d(after or n, 12, 3, padding=int(pad)), nn.BatchNorm2d(12), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
def flat(mid, n, side=8): return nn.Sequential(conv(3, 16), mid, conv(n, 8), nn.Flatten(), nn.Linear(8*side**2, 4))
def images(n=2, side=8): return (torch.randn(n, 3, side, side),)
def tokens(n=2, of=20, long=6): return (torch.randint(0, of, (n,long)),)

class Twice(nn.Module):
    "A module that is used twice"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.h = conv(3,8),conv(8,8),nn.Linear(8,4)
    def forward(self, x):
        x = self.a(x).relu()
        return self.h(self.b(self.b(x).relu()).relu().mean((2,3)))

class C2f(nn.Module):
    "A split and a concatenation, as YOLO's nets have them; `sizes`: are the split's written down?"
    def __init__(self, sizes=False):
        super().__init__()
        def two():
            return nn.Sequential(conv(16,16), nn.BatchNorm2d(16), nn.SiLU(), conv(16,16), nn.BatchNorm2d(16), nn.SiLU())
        self.cv1,self.m1,self.m2,self.cv2,self.h,self.sizes = conv(3,32,1),two(),two(),conv(64,10,1),nn.Linear(10,3),sizes
    def forward(self, x):
        y = list(self.cv1(x).split((16,16), 1) if self.sizes else self.cv1(x).chunk(2, 1))
        y.append(y[-1]+self.m1(y[-1]))
        y.append(y[-1]+self.m2(y[-1]))
        return self.h(self.cv2(torch.cat(y, 1)).relu().mean((2,3)))

class Eca(nn.Module):
    "A convolution along the channels"
    def __init__(self):
        super().__init__()
        self.a,self.c,self.b,self.h = conv(3,16),nn.Conv1d(1,1,3,padding=1),conv(16,8),nn.Linear(8,4)
    def forward(self, x):
        x = self.a(x).relu()
        w = self.c(x.mean((2,3))[:,None]).sigmoid()[:,0,:,None,None]
        return self.h(self.b(x*w).relu().mean((2,3)))

class Squeeze(nn.Module):
    "Squeeze and excitation: channels that scale themselves"
    def __init__(self):
        super().__init__()
        self.a,self.r,self.e,self.b,self.h = conv(3,16),nn.Linear(16,4),nn.Linear(4,16),conv(16,8),nn.Linear(8,4)
    def forward(self, x):
        x = self.a(x).relu()
        w = self.e(self.r(x.mean((2,3))).relu()).sigmoid()
        return self.h(self.b(x*w[:,:,None,None]).relu().mean((2,3)))

class Spatial(nn.Module):
    "Attention to places, from the mean and the largest over channels"
    def __init__(self):
        super().__init__()
        self.a,self.s,self.b,self.h = conv(3,16),conv(2,1),conv(16,8),nn.Linear(8,4)
    def forward(self, x):
        x = self.a(x).relu()
        s = self.s(torch.stack([x.mean(1), x.amax(1)], 1)).sigmoid()
        return self.h(self.b(x*s).relu().mean((2,3)))

class Words(nn.Module):
    "The words' vectors are the last layer's matrix, too"
    def __init__(self):
        super().__init__()
        self.e,self.l,self.l2,self.o = nn.Embedding(20,12),nn.Linear(12,16),nn.Linear(16,12),nn.Linear(12,20)
        self.o.weight = self.e.weight
    def forward(self, x): return self.o(self.l2(self.l(self.e(x)).relu()))

class TwoInTwoOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c,self.h1,self.h2 = nn.Linear(6,10),nn.Linear(4,10),nn.Linear(20,16),nn.Linear(16,3),nn.Linear(16,2)
    def forward(self, a, b):
        z = self.c(torch.cat([self.a(a).relu(), self.b(b).tanh()], 1)).relu()
        return self.h1(z),self.h2(z)

class OfDict(nn.Module):
    "Takes a dict and gives one"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(6,10),nn.Linear(4,10),nn.Linear(10,3)
    def forward(self, d): return dict(out=self.c((self.a(d['a'])+self.b(d['b'])).relu()))

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.i,self.a,self.o = nn.Linear(6,16),nn.MultiheadAttention(16,4,batch_first=True),nn.Linear(16,3)
    def forward(self, x):
        x = self.i(x)
        return self.o(self.a(x,x,x)[0]).mean(1)

class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.e,self.r,self.h,self.o = nn.Embedding(20,8),kind(8,16,batch_first=True),nn.Linear(16,12),nn.Linear(12,3)
    def forward(self, x): return self.o(self.h(self.r(self.e(x))[0][:,-1]).relu())

class Of(nn.Module):
    "Two layers, and what is done between them"
    def __init__(self, a, b, f, **more):
        super().__init__()
        self.a,self.b,self.f = a,b,f
        for k,v in more.items(): setattr(self, k, v)
    def forward(self, x): return self.f(self, x)

def bilinear(s, x):
    x = s.a(x).relu().flatten(2)
    return s.b((x@x.transpose(1,2)).flatten(1))

def shortcut_a(s, x):
    "A shortcut whose new channels are zeros, as ResNet's option A"
    x = s.a(x).relu()
    return s.h((s.b(x)+F.pad(x, (0,0,0,0,4,4))).relu().mean((2,3)))

def cast(s, x): return s.b(s.a(x.float()/2).relu().float())
def made(s, x): return s.b(s.a(x+torch.zeros(x.shape[-1], dtype=torch.float32)).relu()*torch.ones(1))
def noisy(s, x): return s.b(s.a(x).relu()+torch.randn(1))
def dropping(s, x): return s.b(F.dropout(s.a(x).relu(), .5, training=True))
def bottleneck(s, x): return s.b((x@s.a.weight.t()).relu())
def with_input(s, x):
    x = torch.cat([x, s.a(x).relu()], 1)
    return s.h(s.b(x).relu().mean((2,3)))
def pick(s, x): return s.b(s.a(x)[:,s.at].relu())
def linear(i=6, h=10, o=3, f=None, **kw): return Of(nn.Linear(i,h), nn.Linear(h,o), f, **kw)
def rows6(): return (torch.randn(4,6),)
def computed(made):
    "The second of three convolutions has a weight that is `made` of others"
    return nn.Sequential(conv(3,16), nn.ReLU(), made(conv(16,16)), nn.ReLU(), conv(16,8), nn.ReLU(), conv(8,8), nn.Flatten(),
                         nn.Linear(512,4))
def spectral(): return nn.utils.parametrizations.spectral_norm(conv(3,16))
