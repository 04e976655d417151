"Build the site: stage nbs/ as MyST notebooks through nbdev's own processors, run Sphinx over them, check every link"
import os,re,shutil,subprocess,sys
from collections import Counter
from pathlib import Path
from symbols import asked,cfg,exported,missing,modname,names,retarget,role,root
from fastcore.nbio import read_nb,write_nb,mk_cell
from nbdev.config import nbpath2html
from nbdev.doclinks import nbglob
from cards import Lookup,Site
from links import check
from markup import code,markdown

src,out = cfg.doc_path/'src', Path(os.environ.get('OUT', cfg.doc_path/'html')).resolve()

# --- a notebook as a page

def page_of(p): return nbpath2html(p.relative_to(cfg.nbs_path)).with_suffix('.ipynb')
def title(nb): return nb.frontmatter_.get('title','')

def translated(nb, here):
    "Its cells in MyST's syntax; those that a page leaves out are gone"
    for c in nb.cells:
        if c.cell_type=='markdown': c.source = markdown(c.source, here)
        elif c.cell_type=='raw' or (c := code(c)) is None: continue
        yield c

def stage(p):
    "The notebook that Sphinx reads"
    nb = read_nb(p)
    Lookup.page = page_of(p).with_suffix('').as_posix()
    try:
        Site()(nb)
        cells = list(translated(nb, p.parent))
    except Exception as e: sys.exit(f'{p}: {type(e).__name__}: {e}')
    fm = nb.frontmatter_
    lead = f":::{{div}} lead\n{fm['description']}\n:::" if fm.get('description') else ''
    nb.cells = [mk_cell(f"# {fm.get('title', p.stem)}\n\n{lead}", 'markdown'), *cells]
    return nb

# --- the table of modules, and the sidebar

def has_row(n, kind):
    "Not the methods of a class that is in the table itself"
    return kind!='member' and not (kind=='patch' and n.rpartition('.')[0] in exported)
def of_module(p): return [n for n,_,kind in names if modname(n)==p.stem and has_row(n, kind)]
def row(p, nb):
    "A module in the table: what it is for, and its public names"
    about = (nb.frontmatter_.get('description') or '').replace('|', r'\|')
    links = ', '.join(f"{{py:obj}}`{n.split('.',2)[2]} <{n}>`" for n in of_module(p))
    return f"| [{title(nb)}]({p}) | {about} | {links} |"
def contents(pages):
    mods = {p:nb for p,nb in pages.items() if p.parent==Path() and p.stem not in ('all','index')}
    rows = [row(p, nb) for p,nb in mods.items() if of_module(p)]
    head = ':::{table}',':class: modules','','| Module | What for | Public names |','|:--|:--|:--|'
    return '\n'.join([*head,*rows,':::'])

# The storeys of the library, by the tens digit of a room's number
storeys = {0:'Values', 1:'One lottery', 2:'What is done with it', 3:'The laboratory', 4:'What is seen', 9:'Everything'}
captions = {'tutorials':'Guides', 'papers':'Papers'}
def group(p):
    "The caption in the sidebar under which a notebook stands"
    folder = p.relative_to(cfg.nbs_path).parent.as_posix()
    if folder!='.': return captions.get(folder, folder.replace('_',' ').capitalize())
    return storeys.get(int(p.stem[:2])//10 if p.stem[:2].isdigit() else None, 'Library')

def sidebar(nbs):
    "Caption → notebooks, in the order in which a reader meets them"
    groups = {}
    for p in nbs:
        if p.stem!='index': groups.setdefault(group(p), []).append(p)
    first = {k:i for i,k in enumerate([*captions.values(), *storeys.values()])}
    return {k:groups[k] for k in sorted(groups, key=lambda k: first.get(k, len(first)))}

def entry(p, nb, twice):
    "A page in the sidebar, with a title of its own where two pages have the same"
    u,folder = page_of(p).with_suffix('').as_posix(),p.parent.name
    if '/' not in u or title(nb) not in twice: return u
    return f"{title(nb)} ({dict(tutorials='guide',papers='paper').get(folder,folder)}) <{u}>"

def toctree(caption, entries):
    return mk_cell('\n'.join(['```{toctree}',':hidden:',f':caption: {caption}','',*entries,'```']), 'markdown')
def toctrees(nbs, pages, extra):
    "One for each group of the sidebar"
    twice = {t for t,n in Counter(map(title, pages.values())).items() if n>1}
    for k,ps in sidebar(nbs).items(): yield toctree(k, [entry(p, pages[page_of(p)], twice) for p in ps])
    yield toctree('Project', [p.stem.lower() for p in extra])

# --- staging and building

def copy_images():
    for p in cfg.nbs_path.rglob('*'):
        if p.suffix not in ('.png','.jpg','.svg','.gif','.webp') or not p.is_file(): continue
        (dst := src/p.relative_to(cfg.nbs_path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, dst)

def write(pages):
    "All pages are known now, and so is what can be linked to"
    for rel,nb in pages.items():
        for c in nb.cells:
            if c.cell_type=='markdown': c.source = role.sub(retarget, c.source)
        (src/rel).parent.mkdir(parents=True, exist_ok=True)
        write_nb(nb, src/rel)

def stage_all():
    shutil.rmtree(src, ignore_errors=True)
    nbs = sorted(nbglob(as_path=True), key=lambda p: (len(p.parts),p))
    for p in nbs:
        for c in read_nb(p).cells: asked.update(re.findall(r'^show_doc\(([\w.]+)', c.source, re.M))
    pages = {page_of(p):stage(p) for p in nbs}
    if bad := missing():
        head = 'These public names have no docstring (a value: no comment behind or above it), or no page shows them:'
        sys.exit('\n  '.join([head,*bad]))
    if (p := Path('all.ipynb')) in pages: pages[p].cells.append(mk_cell(contents(pages), 'markdown'))
    copy_images()
    extra = [p for o in ('CHANGELOG','CONTRIBUTING') if (p := cfg.config_path/f'{o}.md').exists()]
    pages[Path('index.ipynb')].cells += toctrees(nbs, pages, extra)
    write(pages)
    for p in extra: shutil.copy(p, src/f'{p.stem.lower()}.md')

def sphinx():
    opts = ['-q','-W','--keep-going','-E','-b','html','-d',cfg.doc_path/'doctrees','-c',root/'docs',src,out]
    return subprocess.run([sys.executable,'-m','sphinx',*opts,*sys.argv[1:]]).returncode

def main():
    os.environ['IN_TEST'] = '1'
    stage_all()
    shutil.rmtree(out, ignore_errors=True)
    if rc := sphinx(): sys.exit(rc)
    n,bad = check(out)
    if bad: sys.exit('\n  '.join(['The site is built, but:',*bad]))
    print(f'{n} pages in {os.path.relpath(out)}')
if __name__=='__main__':
    if sys.version_info>=(3,11): main()
    else: print(f'The site was NOT built: Sphinx 9 needs Python 3.11 or newer, this is {sys.version.split()[0]}')
