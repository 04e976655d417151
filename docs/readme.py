"Write README.md from nbs/index.ipynb; with --check, only say whether it is up to date"
import os,re,sys
from pathlib import Path
import nbformat
from fastcore.nbio import read_nb,nb2str,mk_cell
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.processors import FilterDefaults

os.chdir(Path(__file__).resolve().parent.parent)
cfg = get_config()
class Readme(FilterDefaults):
    "nbdev's processors, less those that run code or link symbols to the site"
    def base_procs(self): return [p for p in super().base_procs() if p.__name__ not in ('add_show_docs','exec_show_docs','add_links','insert_warning')]

_call = re.compile(r'^:::\s*\{\.callout-(\w+)[^}]*\}\s*\n+(?:#+\s+([^\n]*)\n+)?(.*?)^:::[ \t]*$', re.M|re.S)
def alert(m):
    body = (f'**{m[2]}**\n\n' if m[2] else '')+m[3].strip()
    return '\n'.join(['> [!'+m[1].upper()+']']+[('> '+l).rstrip() for l in body.splitlines()])

def tidy(c):
    if c.cell_type=='markdown':
        c.source = re.sub(r'\]\((?!\w+:|/|#)([^)]+)\)', rf']({cfg.nbs_path.name}/\1)', _call.sub(alert, c.source))
    c.metadata = {}
    if c.cell_type=='code':
        says = dict(re.findall(r'^#\|\s*fig-(alt|cap):\s*"?(.*?)"?\s*$', c.source, re.M))
        if says: c.metadata['alt'] = says.get('alt', says.get('cap'))
        if re.search(r'^#\|\s*output:\s*false', c.source, re.M): c.outputs = []
        if re.search(r'^#\|\s*include:\s*false', c.source, re.M): c.source,c.outputs = '',[]
        if re.search(r'^#\|\s*echo:\s*false', c.source, re.M): c.source = ''
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip()
    return c

def make():
    os.environ['IN_TEST'] = '1'
    nb = read_nb(cfg.nbs_path/cfg.readme_nb)
    Readme()(nb)
    fm = nb.frontmatter_
    nb.cells = [mk_cell(f"# {fm['title']}\n\n{fm.get('description','')}".strip(),'markdown')]+[tidy(c) for c in nb.cells if c.cell_type!='raw']
    nb.metadata['language_info'] = {'name':'python'}
    body,res = MarkdownExporter().from_notebook_node(nbformat.reads(nb2str(nb),4), {'output_files_dir':'README_files','unique_key':'index'})
    body = re.sub(r'!\[\w*\]\((README_files/index_(\d+)_\d+\.\w+)\)', lambda m: f"![{nb.cells[int(m[2])].metadata.get('alt','')}]({m[1]})", body)
    body = re.sub(r'^```python\n\s*```\n', '', re.sub(r'<style scoped>.*?</style>\n?', '', body, flags=re.S), flags=re.M)
    body = re.sub(r'\n{3,}', '\n\n', '\n'.join(l.rstrip() for l in body.splitlines())).strip()+'\n'
    return {'README.md':body.encode(), **res['outputs']}

def main(check='--check' in sys.argv):
    new = make()
    old = {n:p.read_bytes() for n in ['README.md',*(f'README_files/{o.name}' for o in Path('README_files').glob('*'))] if (p := Path(n)).exists()}
    if check: return sys.exit(0 if old==new else 'README.md is not what nbs/index.ipynb makes: run `make readme`')
    for n in old.keys()-new.keys(): Path(n).unlink()
    for n,b in new.items():
        (p := Path(n)).parent.mkdir(exist_ok=True)
        p.write_bytes(b)
if __name__=='__main__': main()
