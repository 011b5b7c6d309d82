"""The report of a run: tables in a terminal, and one HTML file that needs no network."""

from ifedicl.report.facts import ClientTraffic, Figures, Report, kilobytes, percent, traffic_by_client
from ifedicl.report.rich_tables import evaluation_tables
from ifedicl.report.verdict import compare
from ifedicl.report.writing import print_report, write_report

__all__ = [
    "ClientTraffic",
    "Figures",
    "Report",
    "compare",
    "evaluation_tables",
    "kilobytes",
    "percent",
    "print_report",
    "traffic_by_client",
    "write_report",
]
